"""The prompts: the same token ids for every case, of exactly the asked length, none like another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hybridgraph.errors import UserError


class Prompts(Protocol):
    """Where a request's ids come from."""

    def ids(self, length: int, index: int) -> list[int]:
        """``length`` token ids for the ``index``-th request of that length in a run."""
        ...


class RandomPrompts:
    """Seeded uniform ids, special tokens excluded; a function of (seed, length, index) alone."""

    def __init__(self, *, seed: int, vocab_size: int, special_ids: Sequence[int] = ()) -> None:
        self._seed = seed
        self._allowed = np.setdiff1d(np.arange(vocab_size), np.asarray(special_ids, dtype=np.int64))
        if not self._allowed.size:
            raise UserError(f"all of the vocabulary's {vocab_size} ids are special: none is left for a random prompt")

    def ids(self, length: int, index: int) -> list[int]:
        draw = np.random.default_rng((self._seed, length, index))
        drawn: list[int] = draw.choice(self._allowed, size=length).tolist()
        return drawn


class TextPrompts:
    """Windows of one tokenized text; each request starts at another place, as far as the text reaches."""

    def __init__(self, text_ids: Sequence[int], *, seed: int, source: str) -> None:
        self._ids = list(text_ids)
        self._seed = seed
        self._source = source

    def ids(self, length: int, index: int) -> list[int]:
        room = len(self._ids) - length
        if room < 0:
            raise UserError(
                f"prompt length {length} is more than the {len(self._ids)} tokens of {self._source}: "
                "give a longer text or shorter --prompt-lengths"
            )
        start = int(np.random.default_rng((self._seed, length)).permutation(room + 1)[index % (room + 1)])
        return self._ids[start : start + length]
