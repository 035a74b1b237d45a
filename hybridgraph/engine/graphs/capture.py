"""How one graph is made, replayed and freed: on a GPU by the driver, elsewhere by running the callable again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

MIB = 1 << 20


@dataclass(kw_only=True)
class CaptureCost:
    """What one graph cost, in milliseconds of wall time and MiB of device memory."""

    warmup_ms: float = 0.0  # the forward run eagerly once, for the first time at its length
    eager_ms: float | None = None  # once more, before serving only: a request without a graph
    capture_ms: float = 0.0  # recording and instantiating
    first_replay_ms: float | None = None  # pays for the upload; None of a background graph, uploaded without running
    replay_ms: float | None = None  # the second one
    pool_mib: float = 0.0  # by which the allocator's pools grew
    driver_mib: float = 0.0  # by which all of the device's used memory grew: the executable graph, and the above
    num_nodes: int | None = None  # operations in the graph, where the driver tells

    @property
    def own_mib(self) -> float:
        """What leaves with the graph: not the pool that all graphs share, nor what other processes freed meanwhile."""
        return max(0.0, self.driver_mib - self.pool_mib)


class CapturedGraph(Protocol):
    """A forward that can be run again on the buffers it was captured with."""

    @property
    def num_nodes(self) -> int | None:
        """Operations in the graph, where the driver tells."""
        ...

    def replay(self) -> None: ...

    def upload(self) -> bool:
        """Make the first replay as cheap as the others, without running anything; False where that cannot be done."""
        ...

    def free(self) -> None: ...


class GraphBackend(Protocol):
    """Makes graphs."""

    @property
    def name(self) -> str: ...

    def capture(self, warm_up: Callable[[], None], run: Callable[[], None]) -> CapturedGraph:
        """Record ``run`` without executing it. ``warm_up`` does the same work on buffers nobody else uses now."""
        ...

    def synchronize(self) -> None:
        """Wait for what was launched on the current stream (never for the device: another thread may capture)."""
        ...

    def memory_mib(self) -> tuple[float, float]:
        """(MiB the allocator holds, MiB in use on the device)."""
        ...


class EmulatedGraph:
    """Not a CUDA Graph: ``replay`` calls the captured function again on the same buffers."""

    num_nodes = None

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run

    def replay(self) -> None:
        self._run()

    def upload(self) -> bool:
        return True

    def free(self) -> None:
        self._run = _freed


def _freed() -> None:
    raise RuntimeError("a graph was replayed after it was freed")


class EmulatedGraphs:
    """The backend of machines without a GPU. Every row it serves says "emulated"."""

    name = "emulated"

    def capture(self, warm_up: Callable[[], None], run: Callable[[], None]) -> CapturedGraph:
        warm_up()
        return EmulatedGraph(run)

    def synchronize(self) -> None:
        pass

    def memory_mib(self) -> tuple[float, float]:
        return 0.0, 0.0


class CudaGraph:
    """One executable CUDA Graph."""

    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        self._graph = graph
        self._stream = stream

    def replay(self) -> None:
        self._graph.replay()

    @property
    def num_nodes(self) -> int | None:
        if (runtime := _cuda_runtime()) is None:
            return None
        error, _, count = runtime.cudaGraphGetNodes(self._graph.raw_cuda_graph())
        return int(count) if error == runtime.cudaError_t.cudaSuccess else None

    def upload(self) -> bool:
        if (runtime := _cuda_runtime()) is None:
            return False
        (error,) = runtime.cudaGraphUpload(self._graph.raw_cuda_graph_exec(), self._stream.cuda_stream)
        self._stream.synchronize()
        return bool(error == runtime.cudaError_t.cudaSuccess)

    def free(self) -> None:
        self._graph.reset()


def _cuda_runtime() -> Any:
    """NVIDIA's Python bindings of the CUDA runtime, which torch's CUDA builds bring; None without them."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    return runtime


class CudaGraphs:
    """Captures on a stream of its own, into one memory pool that all graphs share.

    Sharing is safe because replays never overlap and no graph reads another's intermediates: the
    engine's lock sees to the first, caller-owned buffers to the second.

    Warm-up runs on another stream than the capture. cuBLAS has one workspace a stream, and graphs
    keep using the workspace of the stream they were captured on: a warm-up there, while a graph
    replays, would write into a live product's partial sums.
    """

    name = "cuda"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._capture_stream = torch.cuda.Stream(device)
        self._warmup_stream = torch.cuda.Stream(device)

    def capture(self, warm_up: Callable[[], None], run: Callable[[], None]) -> CapturedGraph:
        self._warmup_stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._warmup_stream):
            warm_up()
        self._warmup_stream.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with _collector_off(), torch.cuda.stream(self._capture_stream):
            # thread_local: what another thread launches meanwhile is none of this capture's business.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                _abandon(graph)
                # The allocator takes the broken capture's pool for one still in use, and its stream stays invalid.
                self._pool = torch.cuda.graph_pool_handle()
                self._capture_stream = torch.cuda.Stream(self._device)
                raise
            graph.capture_end()
        graph.instantiate()
        return CudaGraph(graph, self._warmup_stream)

    def synchronize(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def memory_mib(self) -> tuple[float, float]:
        free, total = torch.cuda.mem_get_info(self._device)
        return torch.cuda.memory_reserved(self._device) / MIB, (total - free) / MIB


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    """End a capture whose body failed, so that the stream can be used again."""
    with suppress(RuntimeError):  # of an invalidated capture: the body's own error is the one to tell
        graph.capture_end()
        graph.reset()


@contextmanager
def _collector_off() -> Iterator[None]:
    """A collected Triton kernel unloads its module, which is illegal while a stream captures."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def backend_for(device: torch.device) -> GraphBackend:
    """CUDA Graphs on a GPU; elsewhere the emulation, which says so in its name."""
    return CudaGraphs(device) if device.type == "cuda" else EmulatedGraphs()
