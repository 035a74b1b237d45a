"""A running generator as a source of tokens whose dynamic operations run here, on buffers that both processes see.

The client copies and pads the prompt into the shared input, the generator replays, the client
samples from the shared logits: no id and no logit travels in a message. What it costs is a wait for
the device on both sides of each replay, because each process only knows its own work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridgraph.contract import Report, Request, SourceInfo, check_request
from hybridgraph.engine.buffers import StaticBuffers, overflowed
from hybridgraph.engine.inputs import StagedInput
from hybridgraph.engine.ops.select import dynamic_ops
from hybridgraph.errors import UserError, one_line
from hybridgraph.machine.timing import DeviceTimer
from hybridgraph.serving.client import STARTING_TIMEOUT_S, TIMEOUT_S, GeneratorLink, OnQueued
from hybridgraph.serving.ipc.buffers import SHARED_NAMES, import_tensor
from hybridgraph.serving.ipc.messages import (
    DecodeStep,
    Finished,
    Prefill,
    Ready,
    Replayed,
    Share,
    Shared,
)
from hybridgraph.system.console import OnProgress, no_op


class SharedBufferClient:
    """A ``TokenSource``. It holds the engine for an answer at a time; other clients wait that long."""

    def __init__(self, link: GeneratorLink, ready: Ready, shared: dict[str, Tensor]) -> None:
        self._link = link
        self._ready = ready
        self._shared = shared
        # Fused operations write only to the engine's own buffers; native's sample the same ids.
        self._ops = dynamic_ops("native" if ready.info.ops == "fused" else ready.info.ops)
        self._request_id = 1  # the first is Share
        logits = shared["logits"]
        self._input = StagedInput(shared["ids"].numel(), logits.device, self._ops.preprocess)
        self._own = StaticBuffers(self._input, vocab_size=logits.numel(), dtype=logits.dtype, device=logits.device)
        self._before, self._after = DeviceTimer(logits.device), DeviceTimer(logits.device)
        self._stream = torch.cuda.current_stream(logits.device) if logits.is_cuda else None
        self._ops.compile(self._own)
        self._synchronize()

    @classmethod
    def connect(
        cls,
        path: Path,
        *,
        script: str,
        timeout_s: float = TIMEOUT_S,
        starting_timeout_s: float = STARTING_TIMEOUT_S,
        on_progress: OnProgress = no_op,
        on_queued: OnQueued = no_op,
    ) -> SharedBufferClient:
        """Wait until the generator is ready and has lent its buffers; raises UserError, then and later."""
        link, ready = GeneratorLink.open(
            path,
            script=script,
            timeout_s=timeout_s,
            starting_timeout_s=starting_timeout_s,
            on_progress=on_progress,
            on_queued=on_queued,
        )
        try:
            return cls(link, ready, _import_buffers(link))
        except BaseException:
            link.channel.close()
            raise

    @property
    def info(self) -> SourceInfo:
        return self._ready.info

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        """Answer ``request``; ``device_ms`` is both processes' device time, without the waits between them."""
        # The generator cannot see these ids: an invalid one would end its process.
        check_request(request, self.info)
        self._before.start()
        staged = self._input.stage(request)
        self._ops.preprocess(staged, self._shared["ids"], self._shared["last"])
        self._before.stop()
        self._request_id += 1
        try:
            report = self._replay(Prefill(request_id=self._request_id, length=len(request.prompt_ids))).report
            self._after.start()
            self._sample(request, 0)
            self._after.stop()
            emit(self._read(0))
            for step in range(1, request.max_new_tokens):
                self._set_position(step)
                self._replay(DecodeStep(request_id=self._request_id))
                self._sample(request, step)
                emit(self._read(step))
            last_overflowed = overflowed(self._shared["logits"])  # while they are this answer's
        finally:
            self._link.send(Finished(request_id=self._request_id))
        return self._summed(report or Report(), last_overflowed)

    def stats(self) -> dict[str, Any]:
        return self._link.stats()

    def close(self) -> None:
        """Let go of the buffers, then of the engine: in this order, because the buffers are the generator's."""
        self._shared = {}
        self._link.channel.close()

    def _replay(self, message: Prefill | DecodeStep) -> Replayed:
        self._synchronize()  # the generator's device work knows nothing of ours
        self._link.send(message)
        return self._link.wait_for(Replayed, request_id=message.request_id)

    def _set_position(self, step: int) -> None:
        position = self._shared["position"]
        if step == 1:
            torch.add(self._shared["last"], 1, out=position)
        else:
            position.add_(1)

    def _sample(self, request: Request, step: int) -> None:
        ops, logits = self._ops, self._shared["logits"]
        token = ops.sample(logits, self._input.draws[step]) if request.temperature else ops.greedy(logits)
        if request.max_new_tokens > 1:
            self._shared["token"].copy_(token)
        self._own.tokens_host[step : step + 1].copy_(token, non_blocking=True)

    def _read(self, step: int) -> int:
        self._synchronize()
        return self._own.token_at(step)

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _summed(self, report: Report, last_overflowed: bool) -> Report:
        parts = (self._before.elapsed_ms(), report.device_ms, self._after.elapsed_ms())
        device_ms = None if None in parts else sum(part for part in parts if part is not None)
        return Report(device_ms=device_ms, graph_path=report.graph_path, overflowed=last_overflowed)


def _import_buffers(link: GeneratorLink) -> dict[str, Tensor]:
    link.send(Share(request_id=1))
    descriptors: list[int] = []
    try:
        shared = link.wait_for(Shared, request_id=1, descriptors=descriptors)
        missing = [name for name in SHARED_NAMES if name not in shared.buffers]
        if missing:
            raise UserError(f"the generator at {link.path} shares no {missing[0]}")
        return {name: import_tensor(shared.buffers[name], descriptors) for name in SHARED_NAMES}
    except (RuntimeError, ValueError, OSError) as error:  # of the driver: not every container lets processes share
        where = f"the buffers of the generator at {link.path} cannot be used from here"
        raise UserError(f"{where} ({one_line(error)}): leave out --share-buffers") from None
    finally:
        for descriptor in descriptors:  # a mapping outlives its descriptor
            os.close(descriptor)
