"""The static operations: a model's forward over caller-owned buffers of fixed shapes, ready to be captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """One static key-value cache, owned by the engine; a forward writes and reads it in place.

    What an earlier request left behind the current one's positions is masked, not cleared.
    """

    keys: Tensor  # [layers, kv_heads, positions, head_dim]
    values: Tensor  # the same, where they have heads or a head_dim of their own, with those

    @property
    def positions(self) -> int:
        return self.keys.shape[2]


class Forward(Protocol):
    """The model's forward at batch 1; ``prefill`` and ``decode`` neither synchronize nor keep state of their own."""

    @property
    def kernels(self) -> str:
        """Whose kernels it runs: the same forward may take others on another chip."""
        ...

    @property
    def weight_bits(self) -> int | None:
        """Bits of a weight that a decode step reads, where they are fewer than those of the model's precision."""
        ...

    @property
    def reads_masked(self) -> bool:
        """Whether a decode step multiplies what lies behind its position by zero: NaN there would spoil it."""
        ...

    @property
    def supports_chunks(self) -> bool:
        """Whether a prompt may come in several chunks; otherwise ``start`` is always 0."""
        ...

    def prepare(self, lengths: Sequence[int]) -> None:
        """Get ready, faster than one by one, to prefill prompts of ``lengths``."""
        ...

    def prefill(self, ids: Tensor, length: int, start: Tensor, last: Tensor, cache: Any, logits: Tensor) -> None:
        """Run a prompt, or the next chunk of one.

        ``ids``: int64 [>= start + length], the prompt, padded on the right; ``start``, ``last``: int64 [1],
        the index of the chunk's first id and that of the last real id in it. Writes keys and values of positions
        start … start+length-1 into ``cache`` (those of padding are overwritten before anything reads them)
        and the logits of position ``last`` into ``logits`` [vocab], in the model's precision.
        """
        ...

    def decode(self, token: Tensor, position: Tensor, cache: Any, logits: Tensor) -> None:
        """Run one token. ``token``: int64 [1]; ``position``: int64 [1], where it goes; ``logits``: [vocab]."""
        ...

    def allocate_cache(self, positions: int) -> Any:
        """What ``prefill`` and ``decode`` take as ``cache``, for ``positions``; a KVCache where it is static."""
        ...
