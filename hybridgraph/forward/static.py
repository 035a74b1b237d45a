"""A forward over a model's weights, bound to the engine's buffers: the static operations that graphs capture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hybridgraph.buffers import StaticBuffers
from hybridgraph.forward import Forward
from hybridgraph.forward.hf import EagerHFForward, StaticHFForward


def open_forward(module: PreTrainedModel, name: str, positions: int, *, capturable: bool) -> Forward:
    """The forward called ``name`` (``hf`` or ``fused``) over ``module``'s weights.

    Raises UserError where the fused one does not cover the architecture.
    """
    if name == "fused":
        from hybridgraph.forward.fused import FusedForward

        return FusedForward(module)
    return StaticHFForward(module, positions) if capturable else EagerHFForward(module)


class StaticOperations:
    """Prefill and decode without arguments but a length, over one set of buffers and one cache of ``positions``."""

    def __init__(self, forward: Forward, buffers: StaticBuffers, positions: int) -> None:
        self.supports_chunks = forward.supports_chunks
        self._forward = forward
        self._buffers = buffers
        self._cache = forward.allocate_cache(positions)

    def prepare(self, lengths: Sequence[int]) -> None:
        self._forward.prepare(lengths)

    def run_prefill(self, length: int) -> None:
        buffers = self._buffers
        self._forward.prefill(buffers.ids, length, buffers.start, buffers.last, self._cache, buffers.logits)

    def run_decode(self) -> None:
        buffers = self._buffers
        self._forward.decode(buffers.token, buffers.position, self._cache, buffers.logits)

    def point_at(self, start: int, last: int) -> None:
        self._buffers.start.fill_(start)
        self._buffers.last.fill_(last)

    def rehearse_prefill(self, length: int) -> None:
        """Prefill on ids, cache and logits of its own: background warm-up must not touch a live request's."""
        ids, first = torch.zeros_like(self._buffers.ids[:length]), torch.zeros_like(self._buffers.start)
        logits = torch.empty_like(self._buffers.logits)
        self._forward.prefill(ids, length, first, first, self._forward.allocate_cache(length), logits)
