"""Buffers in a client's hands: it fills and reads them, the generator replays on its own ones and copies.

What keeps the two apart is order, not locks: the client's writes have finished when it sends
Prefill or DecodeStep, and the device's have when Replayed is sent. A client that writes at any other
time, or after it gave the buffers back, spoils its own answers and nobody else's: every lease has
memory of its own, and what is copied from there is brought into range on the way.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybridgraph.contract import Report
from hybridgraph.errors import UserError
from hybridgraph.serving.ipc.buffers import export_tensor
from hybridgraph.serving.ipc.messages import CpuBuffer, CudaBuffer

if TYPE_CHECKING:
    from hybridgraph.engine.engine import HybridEngine
    from hybridgraph.serving.queue import Job


class Lender:
    """Makes leases. On a GPU what it lends lies in memory that nothing else does: a process maps whole segments."""

    def __init__(self, engine: HybridEngine) -> None:
        self._engine = engine
        self._static = engine.shared_tensors()
        self._pool = torch.cuda.MemPool() if self._static["logits"].is_cuda else None

    def lend(self, request_id: int) -> Lease:
        """Allocate and export buffers like the engine's, for the Share of ``request_id``; raises RuntimeError."""
        with self._own_memory():
            lent = {name: torch.zeros_like(tensor) for name, tensor in self._static.items()}
        return Lease(request_id, self._engine, self._static, lent)

    def _own_memory(self) -> AbstractContextManager[None]:
        if self._pool is None:
            return nullcontext()
        return torch.cuda.use_mem_pool(self._pool, self._static["logits"].device)


class Lease:
    """One client's buffers, from its Share until it gives them back or is gone.

    ``handles`` name them to the client, ``descriptors`` travel beside the handles; ``answer`` is the last Prefill
    while it takes further steps.
    """

    def __init__(
        self, request_id: int, engine: HybridEngine, static: dict[str, Tensor], lent: dict[str, Tensor]
    ) -> None:
        self.request_id = request_id
        self.answer: Job | None = None
        self._engine = engine
        self._static = static
        self._lent = lent
        self._vocab_size, self._positions = static["logits"].numel(), static["ids"].numel()
        self._num_left = 0  # positions of the answer in progress
        self.handles: dict[str, CudaBuffer | CpuBuffer] = {}
        self.descriptors: list[int] = []
        for name, tensor in lent.items():
            self.handles[name] = export_tensor(tensor, self.descriptors)

    def prefill(self, length: int) -> Report:
        """Run the prompt of ``length`` in the client's ``ids``; its ``logits`` are in place when this returns.

        The engine must be held. Raises UserError for a length that the buffers cannot hold.
        """
        self._take("ids", self._vocab_size)
        report = self._engine.replay_prefill(length)
        self._num_left = self._positions - length
        self._give_logits()
        return report

    def decode(self) -> None:
        """Run the client's ``token`` at its ``position``; its ``logits`` are in place when this returns.

        The engine must be held. Raises UserError for more steps than there are positions.
        """
        if self._num_left <= 0:
            raise UserError(f"the answer has all of the {self._positions} positions already")
        self._num_left -= 1
        self._take("token", self._vocab_size)
        self._take("position", self._positions)
        self._engine.replay_decode()
        self._give_logits()

    def _take(self, name: str, num_values: int) -> None:
        """Copy a buffer from the client, each value into range: on a GPU one outside would end this process."""
        torch.clamp(self._lent[name], 0, num_values - 1, out=self._static[name])

    def _give_logits(self) -> None:
        logits = self._lent["logits"]
        logits.copy_(self._static["logits"])
        if logits.is_cuda:
            torch.cuda.current_stream(logits.device).synchronize()
