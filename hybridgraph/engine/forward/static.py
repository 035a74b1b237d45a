"""A forward over a model's weights, bound to the engine's buffers: the static operations that graphs capture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hybridgraph.engine.buffers import StaticBuffers, overflowed
from hybridgraph.engine.forward.protocol import Forward


class StaticOperations:
    """Prefill and decode without arguments but a length, over one set of buffers and one cache."""

    def __init__(self, forward: Forward, buffers: StaticBuffers) -> None:
        self.kernels = forward.kernels
        self.weight_bits = forward.weight_bits
        self.supports_chunks = forward.supports_chunks
        self._forward = forward
        self._buffers = buffers
        self._cache = forward.allocate_cache(buffers.positions)

    @property
    def num_layers(self) -> int:
        """Of a forward whose cache is static."""
        return int(self._cache.keys.shape[0])

    def prepare(self, lengths: Sequence[int]) -> None:
        self._forward.prepare(lengths)

    def run_prefill(self, length: int) -> None:
        read = self._buffers.input
        read.fetch()
        self._forward.prefill(read.ids, length, read.start, read.last, self._cache, self._buffers.logits)

    def run_decode(self) -> None:
        buffers = self._buffers
        self._forward.decode(buffers.token, buffers.position, self._cache, buffers.logits)

    def point_at(self, start: int, last: int) -> None:
        self._buffers.input.point_at(start, last)

    def point_back(self) -> None:
        self._buffers.input.point_back()

    def forget_overflow(self) -> bool:
        """Whether the logits are not all finite. Then neither is the cache: its NaN must not reach later answers."""
        found = overflowed(self._buffers.logits)
        if found and self._forward.reads_masked:
            self._cache.keys.zero_()
            self._cache.values.zero_()
        return found

    def rehearse_prefill(self, length: int) -> None:
        """Prefill on ids, cache and logits of its own: background warm-up must not touch a live request's."""
        ids, first = torch.zeros_like(self._buffers.input.ids[:length]), torch.zeros_like(self._buffers.position)
        logits = torch.empty_like(self._buffers.logits)
        self._forward.prefill(ids, length, first, first, self._forward.allocate_cache(length), logits)
