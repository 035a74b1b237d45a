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
from inspect import GEN_SUSPENDED, getgeneratorstate
from operator import index
from os import PathLike, fspath
from typing import Any
from weakref import finalize, ref

import torch
from torch import Tensor

from hybridgraph.contract import Report, Request, SourceInfo, check_request
from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.forward.static import open_static_operations
from hybridgraph.engine.graphs.background import BackgroundCapture
from hybridgraph.engine.graphs.capture import CapturedGraph, backend_for
from hybridgraph.engine.graphs.lock import Turn
from hybridgraph.engine.graphs.policy import RULES, GraphCache
from hybridgraph.engine.graphs.pool import GraphPool, Plan, eagerly
from hybridgraph.engine.ops.select import dynamic_ops
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.errors import UserError
from hybridgraph.machine.timing import DeviceMark, DeviceTimer, Stopwatch, on_device
from hybridgraph.models.loading import LoadedModel, device_called, load_model, out_of_memory_is_users
from hybridgraph.system.console import OnProgress, nobody


class HybridEngine(AbstractContextManager["HybridEngine"]):
    """Answers requests one at a time, in one thread; ``answer`` is what the generator serves, ``generate`` a user's."""

    def __init__(
        self, loaded: LoadedModel, options: EngineOptions, info: SourceInfo, progress: OnProgress = nobody
    ) -> None:
        if options.positions > loaded.max_positions:
            raise UserError(f"{options.positions} positions exceed the {loaded.max_positions} of {loaded.name}")
        watch = Stopwatch()
        device = loaded.device
        self.report = Report()
        self._ops = dynamic_ops(options.ops)
        captured = options.graphs != "none"
        self._lookahead = 1 if captured and device.type == "cuda" else 0  # other steps would delay the id before
        self._timer = DeviceTimer(device)
        self._ready = [DeviceMark(device) for _ in range(1 + self._lookahead)]
        self._answers: set[ref[Generator[int, None, None]]] = set()  # of those that still exist
        self._answering = self._closed = False
        self._overflowed = 0  # answers
        self._pool: GraphPool | None = None
        self._background: BackgroundCapture | None = None
        with on_device(device), out_of_memory_is_users(device):
            self._buffers = StaticBuffers(
                positions=options.positions,
                vocab_size=loaded.vocab_size,
                dtype=loaded.dtype,
                device=device,
                prefill_fetches_input=self._ops.prefill_fetches_input,
            )
            self._device = self._buffers.logits.device  # which has a number
            self._turn = Turn(self._device)
            self._static = open_static_operations(loaded.module, options.forward, self._buffers, capturable=captured)
            progress("compiling dynamic operations", 0, 1)
            self._ops.compile(self._buffers)
            self._facts: dict[str, Any] = {"kernels": self._static.kernels, "ops_compile_ms": watch.lap_ms()}
            if captured:
                self._open_pool(options, progress)
                self._facts["precapture_ms"] = watch.lap_ms()
        backend = self._pool.backend.name if self._pool else "none"
        self.info = replace(
            info, max_seq_len=options.positions, graph_backend=backend, ops=options.ops, forward=options.forward
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
        progress: OnProgress = nobody,
        **options: Any,
    ) -> HybridEngine:
        """Load ``model`` and build an engine of it; ``options`` are the fields of EngineOptions."""
        made_of = EngineOptions(**options)
        with torch.inference_mode(False):  # tensors made in it could not be written outside, nor by another thread
            loaded = load_model(
                fspath(model), load_format=load_format, dtype=dtype, device=device_called(device), seed=seed
            )
            return cls(loaded, made_of, loaded.info(), progress)

    def generate(
        self, prompt_ids: Sequence[int], max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0
    ) -> Generator[int, None, None]:
        """Stream the ids of one answer. Greedy unless a temperature is given; raises UserError for a bad request."""
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
        return self.answer(request)

    @property
    def is_capturing(self) -> bool:
        """Whether a graph is being captured in the background."""
        return self._background is not None and self._background.busy

    def check(self, request: Request) -> None:
        check_request(request, self.info)

    def answer(self, request: Request) -> Generator[int, None, None]:
        """Stream the ids of a checked request; closing the iterator cancels it. ``report`` is set at its end.

        Raises UserError where another answer is in progress, or the engine is closed.
        """
        answer = self._answer(request)
        self._answers.add(ref(answer, self._answers.discard))
        return answer

    def _answer(self, request: Request) -> Generator[int, None, None]:
        if self._answering:
            raise UserError("another answer is in progress: read it to its end, or close it")
        with self.hold():
            self._answering = True
            try:
                yield from self._ids(request)
            finally:
                self._answering = False

    def _ids(self, request: Request) -> Generator[int, None, None]:
        self._timer.start()
        plan = self._plan(len(request.prompt_ids))  # first: a capture runs on the buffers that the request fills
        self._launch_prefill(request, plan)
        launched = 1
        awake = not self.is_capturing  # else the capturing thread needs the GIL
        try:
            for step in range(request.max_new_tokens):
                while launched < min(step + 1 + self._lookahead, request.max_new_tokens):
                    self._launch_decode(request, launched)
                    launched += 1
                self._ready_at(step).wait(awake=awake)
                yield self._buffers.token_at(step)
        finally:
            self._ready_at(launched - 1).wait()  # the buffers are free for the next request only then
            self._served(len(request.prompt_ids), plan)
            self.report = Report(
                device_ms=self._timer.elapsed_ms(), graph_path=plan.path, overflowed=self.forget_overflow()
            )

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        """Answer ``request``, as a ``TokenSource`` of this process."""
        self.check(request)
        for token in self.answer(request):
            emit(token)
        return self.report

    def require_usable(self) -> None:
        """Raise RuntimeError where an error has left the device unusable for this process."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def stats(self) -> dict[str, Any]:
        """Counters and costs so far, as JSON values."""
        return self._facts | {"overflowed_answers": self._overflowed} | (self._pool.stats() if self._pool else {})

    def close(self) -> None:
        """Cancel the answer in progress, stop capturing and free every graph; what is asked for later is refused.

        From the thread that answers; an engine that is dropped without it stops capturing, too.
        """
        self._closed = True
        for answer in [existing() for existing in list(self._answers)]:  # the collector may take from it
            # One that nobody has begun to read will say itself why it ends.
            if answer is not None and getgeneratorstate(answer) == GEN_SUSPENDED:
                answer.close()
        if self._background:
            self._background.close()
        if self._pool:
            self._pool.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def shared_tensors(self) -> dict[str, Tensor]:
        """The static buffers a client may be given: ids, last, token, position, logits."""
        b = self._buffers
        return {"ids": b.lent_ids, "last": b.lent_last, "token": b.token, "position": b.position, "logits": b.logits}

    def replay_prefill(self, length: int) -> Report:
        """Run a prompt of ``length`` that already lies in the shared ``ids``; logits are in place when this returns.

        The captured length may be larger: what follows the prompt is padding, whatever it is. Raises UserError
        for a length that the buffers cannot hold, or where the engine is closed.
        """
        if not 1 <= length <= self._buffers.positions:
            raise UserError(f"a prompt of {length} ids: from 1 to {self._buffers.positions}")
        with self.hold():
            plan = self._plan(length)
            self._buffers.adopt(length)  # now: a capture, here or in the background, points elsewhere
            self._timer.start()
            plan.run()
            self._timer.stop()
            self._served(length, plan)
            return Report(device_ms=self._timer.elapsed_ms(), graph_path=plan.path)

    def replay_decode(self) -> None:
        """Run the token that already lies in ``token`` at ``position``; logits are in place when this returns."""
        with self.hold():
            self._run_decode()
            self._ready_at(0).mark()
            self._ready_at(0).wait()

    def hold(self) -> AbstractContextManager[None]:
        """Until it is left, nothing in the background touches the buffers, the cache and the logits."""
        if self._closed:
            raise UserError("the engine is closed")
        return self._turn

    def forget_overflow(self) -> bool:
        """At an answer's end, still held: NaN in its logits, and so in the cache, must not spoil the next one."""
        overflowed = self._static.forget_overflow()
        self._overflowed += overflowed
        return overflowed

    def _ready_at(self, step: int) -> DeviceMark:
        return self._ready[step % len(self._ready)]

    def _open_pool(self, options: EngineOptions, progress: OnProgress) -> None:
        cache: GraphCache[CapturedGraph] = GraphCache(
            RULES[options.graphs],
            max_graphs=options.max_graphs,
            max_length=options.positions,
            max_mib=options.max_graph_mib,
        )
        self._pool = GraphPool(self._static, backend_for(self._device), cache, self._turn)
        progress("compiling kernels", 0, 1)
        self._static.prepare(options.lengths)
        self._pool.precapture(options.lengths, progress)
        if options.async_capture:
            self._background = BackgroundCapture(self._pool, self._device)
            finalize(self, self._background.stop).atexit = False

    def _plan(self, length: int) -> Plan:
        return self._pool.plan(length) if self._pool else eagerly(self._static, length)

    def _served(self, length: int, plan: Plan) -> None:
        if self._pool:
            self._pool.served(length, plan)

    def _run_decode(self) -> None:
        if self._pool:
            self._pool.replay_decode()
        else:
            self._static.run_decode()

    def _launch_prefill(self, request: Request, plan: Plan) -> None:
        buffers = self._buffers
        self._ops.place(request, plan.padded_length, buffers)
        plan.run()
        self._choose(request, 0)
        self._timer.stop()
        if request.max_new_tokens > 1:
            torch.add(buffers.last, 1, out=buffers.position)

    def _launch_decode(self, request: Request, step: int) -> None:
        self._run_decode()
        self._choose(request, step)
        self._buffers.position.add_(1)

    def _choose(self, request: Request, step: int) -> None:
        """Sample the ``step``-th id into the decode input, and on to the host; the host does not wait for it here."""
        self._ops.choose(request, step, self._buffers)
        self._ready_at(step).mark()
