"""What an engine is made of, checked before anything is loaded. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from operator import index
from typing import Any

from hybridgraph.cases import CASE4_FUSED
from hybridgraph.config import DEFAULT_MAX_SEQ_LEN, FORWARDS, OPS, Config, parse_lengths
from hybridgraph.engine.graphs.policy import RULES
from hybridgraph.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What an engine is made of. ``graphs`` is a rule's name (``exact``, ``padded``) or ``none``."""

    ops: str = "fused"
    forward: str = "hf"
    graphs: str = "padded"
    precapture: InitVar[Iterable[int] | None] = None  # None: of Case 4's, those that fit
    lengths: tuple[int, ...] = field(init=False)  # to capture before serving, ascending
    max_graphs: int = Config.max_graphs
    max_graph_mib: int | None = Config.max_graph_mib
    async_capture: bool = True
    positions: int = DEFAULT_MAX_SEQ_LEN

    def __post_init__(self, precapture: Iterable[int] | None) -> None:
        """Raise UserError for what no engine can be made of."""
        for name, allowed in (("ops", OPS), ("forward", FORWARDS), ("graphs", ("none", *RULES))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r}: one of {', '.join(allowed)}")
        _require_whole("max_graphs", self.max_graphs)
        _require_whole("positions", self.positions)
        if self.max_graph_mib is not None:
            _require_whole("max_graph_mib", self.max_graph_mib)
        object.__setattr__(self, "lengths", self._lengths(precapture))

    def _lengths(self, precapture: Any) -> tuple[int, ...]:
        if precapture is None:
            return fitting(parse_lengths(CASE4_FUSED.precapture), self.positions, self.max_graphs)
        if not isinstance(precapture, Iterable):
            raise UserError(f"precapture {precapture!r}: lengths")
        lengths = set(precapture)
        for length in lengths:
            _require_whole("precapture", length, most=self.positions)
        if self.graphs != "none" and len(lengths) > self.max_graphs:
            raise UserError(f"precapture: {len(lengths)} lengths, more than max_graphs, which is {self.max_graphs}")
        return tuple(sorted(lengths))


def _require_whole(name: str, value: Any, most: int | None = None) -> None:
    """Raise UserError for anything but a whole number from 1 on, or up to ``most`` positions."""
    try:
        number = index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise UserError(f"{name} {value!r}: a whole number, 1 or more")
    if most is not None and number > most:
        raise UserError(f"{name} {number}: there are {most} positions")


def fitting(lengths: Iterable[int], positions: int, max_graphs: int) -> tuple[int, ...]:
    """Of ``lengths``, the least ones that the buffers and the pool have room for."""
    return tuple(sorted(length for length in set(lengths) if length <= positions)[:max_graphs])
