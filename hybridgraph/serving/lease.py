"""The engine's static buffers in a client's hands: it fills and reads them, the generator only replays.

What keeps the two apart is order, not locks: the client's writes have finished when it sends
Prefill or DecodeStep, and the device's have when Replayed is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from hybridgraph.errors import UserError, one_line
from hybridgraph.serving.ipc.messages import CpuBuffer, CudaBuffer, DecodeStep, Failed, Finished, Prefill, Replayed

if TYPE_CHECKING:
    from hybridgraph.engine.engine import HybridEngine

LeaseMessage = Prefill | DecodeStep | Finished


class Lease:
    """One client's use of the buffers, from Shared until it gives them back or is gone."""

    def __init__(self, engine: HybridEngine) -> None:
        self._engine = engine
        self._holding = ExitStack()  # from an answer's Prefill to its Finished
        self.handles: dict[str, CudaBuffer | CpuBuffer] = {}
        self.descriptors: list[int] = []

    def __enter__(self) -> Lease:
        from hybridgraph.serving.ipc.buffers import export_tensor  # needs torch, which serving by itself does not

        for name, tensor in self._engine.shared_tensors().items():
            self.handles[name] = export_tensor(tensor, self.descriptors)
        return self

    def __exit__(self, *_: object) -> None:
        self._holding.close()

    def replay(self, message: LeaseMessage, log: Callable[[str], None]) -> Replayed | Failed | None:
        """Do what ``message`` asks for; the reply, where it has one."""
        try:
            if isinstance(message, Finished):
                self._holding.close()
                return None
            if isinstance(message, DecodeStep):
                self._engine.replay_decode()
                return Replayed(request_id=message.request_id, report=None)
            self._holding.close()
            self._holding.enter_context(self._engine.hold())
            self._holding.callback(self._engine.forget_overflow)
            return Replayed(request_id=message.request_id, report=self._engine.replay_prefill(message.length))
        except UserError as error:
            return Failed(request_id=message.request_id, kind="request", error=one_line(error))
        except Exception as error:
            log(f"a replay failed in the engine: {one_line(error)}")
            return Failed(request_id=message.request_id, kind="engine", error=one_line(error))
