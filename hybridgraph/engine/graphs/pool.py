"""The rolling pool at work: look up, capture while a request waits or in the background, replay, evict."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch

from hybridgraph.contract import GraphPath
from hybridgraph.engine.graphs.capture import CaptureCost, CapturedGraph, GraphBackend
from hybridgraph.engine.graphs.costs import DECODE, CaptureCosts
from hybridgraph.engine.graphs.lock import EngineLock
from hybridgraph.engine.graphs.policy import Chunk, GraphCache
from hybridgraph.machine.timing import Stopwatch
from hybridgraph.system.console import OnProgress, say

if TYPE_CHECKING:
    from hybridgraph.engine.forward.static import StaticOperations

CAPTURING = threading.Lock()  # one capture at a time in a process, whichever engine's


@dataclass(frozen=True)
class Plan:
    """How one prompt runs."""

    key: int  # the captured length, of several chunks the longest
    path: GraphPath
    run: Callable[[], None]
    padded_length: int  # how many ids ``run`` reads


def eagerly(static: StaticOperations, length: int) -> Plan:
    """The plan without any graph."""
    return Plan(length, "eager", lambda: static.run_prefill(length), padded_length=length)


@dataclass(frozen=True)
class _Recorded:
    """A graph that is not in the pool yet, and what it cost so far."""

    graph: CapturedGraph
    cost: CaptureCost
    uploaded: bool


class GraphPool:
    """Prefill graphs under a budget and one decode graph.

    ``lock`` is held by whoever replays, changes the pool, or counts what is in it.
    """

    def __init__(
        self, static: StaticOperations, backend: GraphBackend, cache: GraphCache[CapturedGraph], lock: EngineLock
    ) -> None:
        self.lock = lock
        self.backend = backend
        self.cache = cache
        self.costs = CaptureCosts()
        self._static = static
        self._finished: dict[int, _Recorded] = {}  # in the background, and on their way into the pool
        self._failed: set[int] = set()  # lengths whose capture failed: to try again would cost the others theirs
        self._decode: CapturedGraph | None = None

    def precapture(self, lengths: Iterable[int], progress: OnProgress) -> None:
        """Capture before serving: the longest first, so that the pool's memory grows once."""
        wanted = sorted(set(lengths), reverse=True)
        progress("capturing graphs", 0, len(wanted) + 1)
        self._decode = self._capture_decode()
        for number, length in enumerate(wanted, start=1):
            self._add(length, serving=False)
            progress("capturing graphs", number + 1, len(wanted) + 1)
        if (lost := len(wanted) - len(self.cache)) > 0:
            say(f"{lost} of {len(wanted)} graphs captured in advance had no room in the pool")

    def plan(self, length: int) -> Plan:
        """How a prompt of ``length`` will run; its graph is captured now if it has to be. Lock held until it ran."""
        if (found := self.cache.look_up(length)) is not None:
            key, graph = found
            return Plan(key, "exact" if key == length else "padded", graph.replay, padded_length=key)
        if self._static.supports_chunks and (chunks := self.cache.look_up_chunks(length)) is not None:
            longest, end = max(chunk.key for chunk, _ in chunks), chunks[-1][0].end
            return Plan(longest, "chunked", lambda: self._replay_chunks(chunks, length), padded_length=end)
        if self._capture_or_make_room(length) and (found := self.cache.look_up(length)) is not None:
            return Plan(length, "captured", found[1].replay, padded_length=length)
        return eagerly(self._static, length)

    def served(self, length: int, plan: Plan) -> None:
        """Count an answer, once it is out: what follows from it is nothing its client should wait for."""
        self.cache.served(length, plan.key, plan.path)

    def replay_decode(self) -> None:
        assert self._decode is not None
        self._decode.replay()

    def capture_in_background(self, length: int) -> None:
        """Capture while requests are served; the lock is held for the exchange alone, where the driver uploads."""
        with CAPTURING:
            graph, cost = self._record(length, rehearse=True)
            self._finished[length] = _Recorded(graph, cost, uploaded=graph.upload())
        with self.lock.against_requests:
            if (recorded := self._finished.pop(length, None)) is None:
                return  # a request has waited for it, and put it into the pool
            evicted = self._insert(length, recorded)
            self.cache.counters["background"] += 1
        for old in evicted:  # out of the pool, so that no request waits for their destruction
            old.free()

    def next_wanted(self) -> int | None:
        """The length to capture next in the background, or None."""
        with self.lock.against_requests:
            return self.cache.next_wanted()

    def capture_failed(self, length: int) -> None:
        """Its capture in the background failed: a request may still capture it, the background thread will not."""
        with self.lock.against_requests:
            self.cache.counters["failed"] += 1
            self.cache.exclude(length)

    def stats(self) -> dict[str, Any]:
        """Counters, what captures cost, and when a graph has paid for itself."""
        with self.lock:
            return {
                "counters": dict(self.cache.counters),
                "graphs_held": len(self.cache),
                "captures": self.costs.num_captures,
                "economics": _economics(self.costs.before_serving),
                "capture_quantiles": self.costs.quantiles(),
                "capture_costs": self.costs.last(),
            }

    def close(self) -> None:
        """Free every graph; nothing may be captured in the background any more."""
        with self.lock:
            for graph in self.cache.clear() + ([self._decode] if self._decode else []):
                graph.free()
            self._decode = None

    def _replay_chunks(self, chunks: list[tuple[Chunk, CapturedGraph]], length: int) -> None:
        try:
            for chunk, graph in chunks:
                self._static.point_at(chunk.start, min(chunk.end, length) - 1)
                graph.replay()
        finally:
            self._static.point_back()

    def _capture_or_make_room(self, length: int) -> bool:
        """Capture; out of memory, evict the oldest half of the pool and try once more. False: serve eagerly."""
        if length in self._failed:
            return False
        for attempt in range(2):
            try:
                self._add(length)
                return True
            except torch.OutOfMemoryError:
                self.cache.counters["failed"] += 1
                for _ in range((len(self.cache) + 1) // 2 if attempt == 0 else 0):
                    if (graph := self.cache.evict()) is not None:
                        graph.free()
            except RuntimeError as error:
                self.cache.counters["failed"] += 1
                say(f"capture of length {length} failed: {error}")
                break
        self._failed.add(length)
        return False

    def _point_at_start(self) -> None:
        """Point at the first id: the request before may have left its last one beyond a shorter prompt."""
        self._static.point_at(0, 0)

    def _add(self, length: int, *, serving: bool = True) -> None:
        self._point_at_start()
        with CAPTURING:
            if (recorded := self._finished.pop(length, None)) is None:
                recorded = _Recorded(*self._record(length, rehearse=False, time_eager=not serving), uploaded=False)
        for old in self._insert(length, recorded):
            old.free()

    def _record(self, length: int, *, rehearse: bool, time_eager: bool = False) -> tuple[CapturedGraph, CaptureCost]:
        """Warm up and capture; nothing that a request could notice, if it rehearses."""
        warm_up = self._static.rehearse_prefill if rehearse else self._static.run_prefill
        return self._timed_capture(lambda: warm_up(length), lambda: self._static.run_prefill(length), time_eager)

    def _capture_decode(self) -> CapturedGraph:
        with CAPTURING:
            graph, cost = self._timed_capture(self._static.run_decode, self._static.run_decode, time_eager=True)
        self._first_replays(graph, cost)
        self.costs.add(DECODE, cost)
        return graph

    def _timed_capture(
        self, warm_up: Callable[[], None], run: Callable[[], None], time_eager: bool
    ) -> tuple[CapturedGraph, CaptureCost]:
        cost, watch = CaptureCost(), Stopwatch()

        def timed_warm_up() -> None:
            cost.warmup_ms = self._timed_ms(warm_up)
            if time_eager:
                cost.eager_ms = self._timed_ms(warm_up)
            watch.lap_ms()  # what follows is the capture

        pool_before, driver_before = self.backend.memory_mib()
        graph = self.backend.capture(timed_warm_up, run)
        cost.capture_ms = watch.lap_ms()
        pool_after, driver_after = self.backend.memory_mib()
        cost.pool_mib, cost.driver_mib = pool_after - pool_before, driver_after - driver_before
        cost.num_nodes = graph.num_nodes
        return graph, cost

    def _first_replays(self, graph: CapturedGraph, cost: CaptureCost) -> None:
        """Pay for the upload, and time a replay: with the lock held, because they run on the live buffers."""
        self._point_at_start()
        cost.first_replay_ms = self._timed_ms(graph.replay)
        cost.replay_ms = self._timed_ms(graph.replay)
        self._static.forget_overflow()  # of the prompt that is still there

    def _timed_ms(self, run: Callable[[], None]) -> float:
        watch = Stopwatch()
        run()
        self.backend.synchronize()
        return watch.lap_ms()

    def _insert(self, length: int, recorded: _Recorded) -> list[CapturedGraph]:
        """Put a graph into the pool, with the lock held; returns those that have left it, for the caller to free."""
        if not recorded.uploaded:
            self._first_replays(recorded.graph, recorded.cost)
        self.costs.add(length, recorded.cost)
        return self.cache.insert(length, recorded.graph, recorded.cost.own_mib)


def _economics(costs: Sequence[CaptureCost]) -> dict[str, Any]:
    """Over the prefill graphs captured before serving; a graph pays back what it saves a request over eager.

    Of others that is not known: while serving, nothing is run only to be timed. Medians, but the mean of MiB, which
    the driver counts in steps.
    """
    figures = [
        (cost.warmup_ms + cost.capture_ms + cost.first_replay_ms, cost.driver_mib, cost.eager_ms - cost.replay_ms)
        for cost in costs
        if cost.eager_ms is not None and cost.first_replay_ms is not None and cost.replay_ms is not None
    ]
    if not figures:
        return {}
    totals_ms, drivers_mib, saved = zip(*figures, strict=True)
    total_ms, saved_ms = median(totals_ms), median(saved)
    return {
        "seconds_a_graph": total_ms / 1e3,
        "driver_mib_a_graph": fmean(drivers_mib),
        "saved_ms_a_request": saved_ms,
        "requests_to_pay_back": total_ms / saved_ms if saved_ms > 0 else None,
    }
