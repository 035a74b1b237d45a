"""The engine's parts at work: launch a prompt by its plan, then decode steps, and wait for each."""

from __future__ import annotations

import torch

from hybridgraph.contract import Report, Request
from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.forward.static import StaticOperations
from hybridgraph.engine.graphs.background import BackgroundCapture
from hybridgraph.engine.graphs.lock import EngineLock
from hybridgraph.engine.graphs.pool import GraphPool, Plan, eagerly
from hybridgraph.engine.ops.protocol import DynamicOps
from hybridgraph.machine.timing import DeviceMark, DeviceTimer


class Runner:
    """Dynamic operations around static ones, over one set of buffers; the caller holds ``lock``.

    ``lookahead`` is the number of decode steps launched before the id of the step before them is read.
    """

    def __init__(
        self,
        ops: DynamicOps,
        static: StaticOperations,
        buffers: StaticBuffers,
        lock: EngineLock,
        pool: GraphPool | None,
        background: BackgroundCapture | None,
    ) -> None:
        device = buffers.logits.device
        self.lock = lock
        self.lookahead = 1 if pool and device.type == "cuda" else 0  # other steps would delay the id before
        self.overflowed_answers = 0
        self._ops = ops
        self._static = static
        self._buffers = buffers
        self._pool = pool
        self._background = background
        self._timer = DeviceTimer(device)
        self._ready = [DeviceMark(device) for _ in range(1 + self.lookahead)]

    @property
    def is_capturing(self) -> bool:
        """Whether a graph is being captured in the background."""
        return self._background is not None and self._background.busy

    def launch_prompt(self, request: Request) -> Plan:
        """Launch the prompt and the sampling of its first id; returns how it runs."""
        self._timer.start()
        plan = self._plan(len(request.prompt_ids))  # first: a capture runs on the buffers that the request fills
        buffers = self._buffers
        buffers.input.place(request, plan.padded_length)
        plan.run()
        self._sample(request, 0)
        self._timer.stop()
        if request.max_new_tokens > 1:
            torch.add(buffers.input.last, 1, out=buffers.position)
        return plan

    def launch_decode(self, request: Request, step: int) -> None:
        """Launch the token before and the sampling of the ``step``-th id."""
        self._run_decode()
        self._sample(request, step)
        self._buffers.position.add_(1)

    def wait_for(self, step: int, *, awake: bool = False) -> int:
        """Wait for the ``step``-th id, and return it; ``awake`` as for a ``DeviceMark``."""
        self._ready[step % len(self._ready)].wait(awake=awake)
        return self._buffers.token_at(step)

    def finish(self, request: Request, plan: Plan, num_launched: int) -> Report:
        """Wait until the buffers are free, and report on an answer of which ``num_launched`` steps were launched."""
        self._ready[(num_launched - 1) % len(self._ready)].wait()
        self._served(len(request.prompt_ids), plan)
        return Report(device_ms=self._timer.elapsed_ms(), graph_path=plan.path, overflowed=self.forget_overflow())

    def replay_prefill(self, length: int) -> Report:
        """Run the first ``length`` of ``lent_ids``; logits are in place when this returns."""
        plan = self._plan(length)
        self._buffers.input.adopt(length)  # now: a capture, here or in the background, points elsewhere
        self._timer.start()
        plan.run()
        self._timer.stop()
        self._served(length, plan)
        return Report(device_ms=self._timer.elapsed_ms(), graph_path=plan.path)

    def replay_decode(self) -> None:
        """Run the token that already lies in ``token`` at ``position``; logits are in place when this returns."""
        self._run_decode()
        self._ready[0].mark()
        self._ready[0].wait()

    def forget_overflow(self) -> bool:
        """At an answer's end: NaN in its logits, and so in the cache, must not spoil the next one."""
        overflowed = self._static.forget_overflow()
        self.overflowed_answers += overflowed
        return overflowed

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

    def _sample(self, request: Request, step: int) -> None:
        """Sample the ``step``-th id into the decode input, and on to the host; the host does not wait for it here."""
        self._ops.sample_step(request, step, self._buffers)
        self._ready[step % len(self._ready)].mark()
