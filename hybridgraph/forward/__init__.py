"""The static operations: a model's forward over caller-owned buffers of fixed shapes, ready to be captured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """One static key-value cache, owned by the engine; a forward writes and reads it in place."""

    keys: Tensor  # [layers, kv_heads, positions, head_dim]
    values: Tensor  # [layers, kv_heads, positions, head_dim]

    @classmethod
    def allocate(
        cls, *, layers: int, kv_heads: int, positions: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        shape = (layers, kv_heads, positions, head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    @property
    def positions(self) -> int:
        return self.keys.shape[2]


class Forward(Protocol):
    """The model's forward at batch 1. Neither method allocates what outlives it, synchronizes, or keeps state."""

    @property
    def name(self) -> str: ...

    def prefill(self, ids: Tensor, last: Tensor, cache: Any, logits: Tensor) -> None:
        """Run a whole prompt.

        ``ids``: int64 [length], padded on the right; ``last``: int64 [1], the index of the last real
        id. Writes keys and values of positions 0 … length-1 into ``cache`` (those of padding are
        overwritten before anything reads them) and the logits of position ``last`` into ``logits``
        [vocab], in the model's precision.
        """
        ...

    def decode(self, token: Tensor, position: Tensor, cache: Any, logits: Tensor) -> None:
        """Run one token. ``token``: int64 [1]; ``position``: int64 [1], where it goes; ``logits``: [vocab]."""
        ...

    def allocate_cache(self, positions: int) -> Any:
        """What ``prefill`` and ``decode`` take as ``cache``, for ``positions``; a KVCache where it is static."""
        ...
