"""The hybrid engine: dynamic operations around captured static ones, one request at a time.

    with HybridEngine.from_pretrained("meta-llama/Llama-2-7b-hf", forward="fused") as engine:
        for token in engine.generate([1, 2, 3], max_new_tokens=16):
            print(token)

A request's way: checked on the host; brought, in one copy, into the input of the graph that
serves its length, which may begin with that copy; replayed; sampled from the logits of its last
real position; read back.
Decoding replays one graph over the same static cache, and the next replay is launched before
the last id is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from operator import index
from os import PathLike, fspath
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from hybridgraph.contract import Report, Request, SourceInfo, check_request
from hybridgraph.engine.answer import Answer
from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.forward.select import open_static_operations
from hybridgraph.engine.forward.static import StaticOperations
from hybridgraph.engine.graphs.background import BackgroundCapture
from hybridgraph.engine.graphs.capture import CapturedGraph, backend_for
from hybridgraph.engine.graphs.lock import EngineLock
from hybridgraph.engine.graphs.policy import RULES, GraphCache
from hybridgraph.engine.graphs.pool import GraphPool
from hybridgraph.engine.ops.protocol import DynamicOps
from hybridgraph.engine.ops.select import dynamic_ops
from hybridgraph.engine.runner import Runner
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.errors import UserError
from hybridgraph.machine.timing import Stopwatch, on_device
from hybridgraph.models.loading import LoadedModel, device_called, load_model, oom_as_user_error
from hybridgraph.system.console import OnProgress, no_op


class HybridEngine(AbstractContextManager["HybridEngine"]):
    """Answers requests one at a time, in one thread: ``stream`` calls back, ``generate`` is read."""

    def __init__(
        self, loaded: LoadedModel, options: EngineOptions, info: SourceInfo, progress: OnProgress = no_op
    ) -> None:
        if options.positions > loaded.max_positions:
            raise UserError(f"{options.positions} positions exceed the {loaded.max_positions} of {loaded.name}")
        _refuse_autocast(loaded.device)
        watch = Stopwatch()
        ops = dynamic_ops(options.ops)
        captured = options.graphs != "none"
        pool = None
        with on_device(loaded.device), oom_as_user_error(loaded.device):
            self._buffers = _allocate_buffers(loaded, ops, options.positions)
            self._device = self._buffers.logits.device  # which has a number
            lock = EngineLock(self._device)
            static = open_static_operations(
                loaded.module, options.forward, self._buffers, capturable=captured, weights=options.weights
            )
            progress("compiling dynamic operations", 0, 1)
            ops.compile(self._buffers)
            self._facts: dict[str, Any] = {"kernels": static.kernels, "ops_compile_ms": watch.lap_ms()}
            if captured:
                pool = _capture_pool(static, options, lock, self._device, progress)
                self._facts["precapture_ms"] = watch.lap_ms()
        self._background = BackgroundCapture(pool, self._device) if pool and options.async_capture else None
        if self._background:
            finalize(self, self._background.stop).atexit = False
        self._pool = pool
        self._runner = Runner(ops, static, self._buffers, lock, pool, self._background)
        self._answer: Answer | None = None  # the last one
        self._closed = False
        backend = pool.backend.name if pool else "none"
        self.info = replace(
            info,
            max_seq_len=options.positions,
            graph_backend=backend,
            ops=options.ops,
            forward=options.forward if static.weight_bits is None else f"{options.forward}, packed weights",
            shape=info.shape and replace(info.shape, weight_bits=static.weight_bits),
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        load_format: str = "auto",
        dtype: str = "float16",
        device: str = "cuda",
        seed: int = 0,
        progress: OnProgress = no_op,
        **options: Any,
    ) -> HybridEngine:
        """Load ``model`` and build an engine of it; ``options`` are those of EngineOptions.

        ``max_seq_len`` is another name of ``positions``. Raises UserError, also for an unknown option.
        """
        made_of = EngineOptions.of(**options)
        with torch.inference_mode(False):  # tensors made in it could not be written outside, nor by another thread
            loaded = load_model(
                fspath(model), load_format=load_format, dtype=dtype, device=device_called(device), seed=seed
            )
            return cls(loaded, made_of, loaded.info(), progress)

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        """Answer ``request``: call ``emit`` with each id as soon as it is there; returns how it was answered.

        What ``emit`` raises cancels the answer, and is raised here. Raises UserError for a request that cannot be
        answered, where another answer is in progress, and where the engine is closed.
        """
        check_request(request, self.info)
        with self._begin(request) as answer:
            for step in range(request.max_new_tokens):
                emit(answer.id_at(step))
        return answer.report

    def generate(
        self, prompt_ids: Sequence[int], max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0
    ) -> Generator[int, None, None]:
        """Return an iterator of the ids of one answer, which is begun when it is first read; to close it cancels it.

        Greedy unless a temperature is given. Raises UserError as ``stream`` does and, when the last id has been
        read, where the logits of that are not finite: the ids mean nothing then.
        """
        try:
            request = Request(
                prompt_ids=[index(token_id) for token_id in prompt_ids],
                max_new_tokens=index(max_new_tokens),
                temperature=float(temperature),
                seed=index(seed),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"no request: {error}") from None
        self.check(request)
        return self._read(request)

    def check(self, request: Request) -> None:
        """Raise UserError for a request that cannot be answered."""
        check_request(request, self.info)

    @property
    def is_capturing(self) -> bool:
        """Whether a graph is being captured in the background."""
        return self._runner.is_capturing

    def require_usable(self) -> None:
        """Raise RuntimeError where an error has left the device unusable for this process."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def stats(self) -> dict[str, Any]:
        """Counters and costs so far, as JSON values."""
        counted = {"overflowed_answers": self._runner.overflowed_answers}
        return self._facts | counted | (self._pool.stats() if self._pool else {})

    def close(self) -> None:
        """Cancel the answer in progress, stop capturing and free every graph; what is asked for later is refused.

        From the thread that answers; an engine that is dropped without it stops capturing, too.
        """
        self._closed = True
        if self._answer:
            self._answer.end()
        if self._background:
            self._background.close()
        if self._pool:
            self._pool.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def shared_tensors(self) -> dict[str, Tensor]:
        """The static buffers a client may be given: ids, last, token, position, logits."""
        b = self._buffers
        lent = {"ids": b.input.lent_ids, "last": b.input.lent_last}
        return lent | {"token": b.token, "position": b.position, "logits": b.logits}

    def replay_prefill(self, length: int) -> Report:
        """Run the first ``length`` of the ids that a client wrote; logits are in place when this returns."""
        if not 1 <= length <= self._buffers.positions:
            raise UserError(f"a prompt of {length} ids: from 1 to {self._buffers.positions}")
        with self.hold():
            return self._runner.replay_prefill(length)

    def replay_decode(self) -> None:
        """Run the token that already lies in ``token`` at ``position``; logits are in place when this returns."""
        with self.hold():
            self._runner.replay_decode()

    def hold(self) -> AbstractContextManager[None]:
        """Until it is left, nothing in the background touches the buffers, the cache and the logits."""
        self._require_open()
        return self._runner.lock

    def forget_overflow(self) -> bool:
        """At an answer's end, still held: NaN in its logits, and so in the cache, must not spoil the next one."""
        return self._runner.forget_overflow()

    def _begin(self, request: Request) -> Answer:
        self._require_open()
        if self._answer and self._answer.in_progress:
            raise UserError("another answer is in progress: read it to its end, or close it")
        _refuse_autocast(self._device)
        self._answer = Answer(self._runner, request)
        return self._answer

    def _read(self, request: Request) -> Generator[int, None, None]:
        with self._begin(request) as answer:
            for step in range(request.max_new_tokens):
                _refuse_autocast(self._device)  # which its reader may have switched on since the last id
                yield answer.id_at(step)
                if not answer.in_progress:
                    return  # the engine was closed
        if answer.report.overflowed:
            raise UserError(
                f"the model's logits are not finite in {self.info.dtype}: the ids mean nothing; try another dtype"
            )

    def _require_open(self) -> None:
        if self._closed:
            raise UserError("the engine is closed")


def _allocate_buffers(loaded: LoadedModel, ops: DynamicOps, positions: int) -> StaticBuffers:
    return StaticBuffers(
        ops.open_input(positions, loaded.device),
        vocab_size=loaded.vocab_size,
        dtype=loaded.dtype,
        device=loaded.device,
    )


def _capture_pool(
    static: StaticOperations, options: EngineOptions, lock: EngineLock, device: torch.device, progress: OnProgress
) -> GraphPool:
    """The pool with the graphs that are captured before serving."""
    cache: GraphCache[CapturedGraph] = GraphCache(
        RULES[options.graphs],
        max_graphs=options.max_graphs,
        max_length=options.positions,
        max_mib=options.max_graph_mib,
    )
    pool = GraphPool(static, backend_for(device), cache, lock)
    progress("compiling kernels", 0, 1)
    static.prepare(options.lengths)
    pool.precapture(options.lengths, progress)
    return pool


def _refuse_autocast(device: torch.device) -> None:
    """Raise UserError where torch.autocast would recompute in another precision what the engine was opened with."""
    if torch.is_autocast_enabled(device.type):
        raise UserError(f"torch.autocast is on for {device.type}: leave it, an engine keeps the dtype it was opened in")
