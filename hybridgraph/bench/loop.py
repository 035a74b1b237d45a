"""The measuring loop: the same for every case, over anything that turns ids into tokens.

TTFT starts when the prompt's ids are a Python list in this process, before the request is sent,
and ends when the first sampled id is a Python int here. ITL is the time between two such ends.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

from hybridgraph.bench.prompts import Prompts
from hybridgraph.bench.protocol import phases
from hybridgraph.bench.samples import PHASES, Phase, Sample, Warmth
from hybridgraph.config import ProtocolSettings
from hybridgraph.contract import GRAPH_PATHS, Request, TokenSource
from hybridgraph.errors import UserError
from hybridgraph.system.standstill import Standstill


class MeasuringLoop:
    """Takes the samples. What a sample costs beside the request itself is two clock reads and one record."""

    def __init__(
        self, source: TokenSource, prompts: Prompts, config: ProtocolSettings, run_id: str, launch: int = 1
    ) -> None:
        self._source = source
        self._launch = launch
        self._prompts = prompts
        self._config = config
        self._run_id = run_id
        counters = source.stats().get("counters", {})
        self.served_before = sum(counters.get(path, 0) for path in GRAPH_PATHS)
        self._standstill = Standstill()
        self._is_cold = not self.served_before
        self._seen: set[tuple[bool, int]] = set()  # whether more than one token was asked for, and the length
        # No two requests of a run share their ids: the prompts of the phases follow each other.
        counts = phases(config)
        ends = accumulate((counts.get(phase, 0) for phase in PHASES), initial=0)
        self._first_prompt = dict(zip((*PHASES, "warm-up"), ends, strict=True))

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Within this block standstills are seen, and the collector never looks at what set-up has left."""
        gc.collect()
        gc.freeze()
        try:
            with self._standstill.watch():
                yield
        finally:
            gc.unfreeze()

    def warm_up(self, lengths: Sequence[int], count: int) -> None:
        """Make ``count`` unmeasured requests at each length."""
        for length in lengths:
            for index in range(count):
                self._sample("ttft", length, self._first_prompt["warm-up"] + index, self._config.new_tokens)

    def warm_up_again(self, samples: Sequence[Sample]) -> None:
        """What ``samples`` of this launch found warm must be so again; what they had not seen, stays to be seen."""
        own = [sample for sample in samples if sample.launch == self._launch]
        for length, new_tokens in sorted({(sample.prompt_length, 1 + len(sample.itl_ms)) for sample in own}):
            self._sample("ttft", length, self._first_prompt["warm-up"], new_tokens)

    def row(self, phase: Phase, length: int, count: int) -> list[Sample]:
        """Take ``count`` samples of ``phase`` at one length."""
        new_tokens, first = self._config.new_tokens if phase == "decode" else 1, self._first_prompt[phase]
        return [self._sample(phase, length, first + i, new_tokens, iteration=i) for i in range(count)]

    def _sample(self, phase: Phase, length: int, prompt_index: int, new_tokens: int, *, iteration: int = 0) -> Sample:
        if self._config.pause_ms:
            time.sleep(self._config.pause_ms / 1e3)
        request = Request(
            prompt_ids=self._prompts.ids(length, prompt_index),
            max_new_tokens=new_tokens,
            temperature=self._config.request_temperature,
            seed=self._config.seed + prompt_index,
        )
        stamps_ns: list[int] = []
        clock = time.perf_counter_ns

        def emit(token: int) -> None:
            stamps_ns.append(clock())  # the id is an int in this process: TTFT ends, or one ITL does

        collections = _collections()
        start_ns = clock()  # the ids are a list; nothing has been sent yet
        report = self._source.stream(request, emit)
        if len(stamps_ns) != new_tokens:
            raise UserError(f"{len(stamps_ns)} tokens came back where {new_tokens} were asked for")
        return Sample(
            run_id=self._run_id,
            phase=phase,
            prompt_length=length,
            iteration=iteration,
            warmth=self._warmth(new_tokens > 1, length),
            ttft_ms=(stamps_ns[0] - start_ns) / 1e6,
            device_ms=report.device_ms,
            engine_ttft_ms=report.engine_ttft_ms,
            graph_path=report.graph_path,
            itl_ms=[(b - a) / 1e6 for a, b in pairwise(stamps_ns)],
            gc_collections=_collections() - collections,
            overflowed=report.overflowed,
            stopped=self._stood_still_since(start_ns),
            launch=self._launch,
        )

    def _stood_still_since(self, start_ns: int) -> bool:
        return (self._standstill.last_ended_ns() or 0) >= start_ns

    def _warmth(self, decodes: bool, length: int) -> Warmth:
        warmth: Warmth = "cold" if self._is_cold else "warm" if (decodes, length) in self._seen else "first_seen"
        self._is_cold = False
        self._seen |= {(decodes, length), (False, length)}  # an answer of several tokens has a first one
        return warmth


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())
