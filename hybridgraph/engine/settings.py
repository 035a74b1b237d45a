"""What an engine is made of, checked before anything is loaded. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field, fields
from inspect import signature
from operator import index
from typing import Any

from hybridgraph.cases import CASE4_FUSED
from hybridgraph.config import DEFAULT_MAX_SEQ_LEN, SETTINGS, EngineSettings
from hybridgraph.engine.graphs.policy import RULES
from hybridgraph.errors import UserError
from hybridgraph.settings import parse_lengths

GRAPHS = ("none", *RULES)
SETTING_OF = {"positions": "max_seq_len"}  # options that are settings of another name; a user may use either


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What an engine is made of. ``graphs`` is a rule's name (``exact``, ``padded``) or ``none``.

    Defaults, ranges and choices are those of the settings.
    """

    ops: str = "fused"
    forward: str = EngineSettings.forward
    weights: str = EngineSettings.weights
    graphs: str = "padded"
    precapture: InitVar[Iterable[int] | None] = None  # None: of Case 4's, those that fit
    lengths: tuple[int, ...] = field(init=False)  # to capture before serving, ascending
    max_graphs: int = EngineSettings.max_graphs
    max_graph_mib: int | None = EngineSettings.max_graph_mib
    async_capture: bool = EngineSettings.async_capture
    positions: int = DEFAULT_MAX_SEQ_LEN

    @classmethod
    def of(cls, **options: Any) -> EngineOptions:
        """Make them of what a user has called them; raises UserError for an unknown option, or one given twice."""
        for option, setting in SETTING_OF.items():
            if option in options and setting in options:
                raise UserError(f"{option} and {setting} are one option: give either")
            if setting in options:
                options[option] = options.pop(setting)
        known = list(signature(cls).parameters)
        for name in options:
            if name not in known:
                raise UserError(
                    f"{name}: no option of an engine; there are {', '.join([*known, *SETTING_OF.values()])}"
                )
        made = cls(**options)
        if made.weights != EngineSettings.weights and made.forward != "fused":
            raise UserError(f"weights {made.weights!r}: forward 'fused' alone reads them, not {made.forward!r}")
        return made

    def __post_init__(self, precapture: Iterable[int] | None) -> None:
        """Raise UserError for what no engine can be made of."""
        for option in fields(self):
            record = SETTINGS.get(SETTING_OF.get(option.name, option.name))
            if record is not None and (option.default is not None or getattr(self, option.name) is not None):
                record.require(getattr(self, option.name), option.name)
        if self.graphs not in GRAPHS:
            raise UserError(f"graphs {self.graphs!r}: one of {', '.join(GRAPHS)}")
        object.__setattr__(self, "lengths", self._lengths(precapture))

    def _lengths(self, precapture: Any) -> tuple[int, ...]:
        if precapture is None:
            return fitting(parse_lengths(CASE4_FUSED.precapture), self.positions, self.max_graphs)
        if not isinstance(precapture, Iterable):
            raise UserError(f"precapture {precapture!r}: lengths")
        lengths = set(precapture)
        for length in lengths:
            _require_position(length, self.positions)
        if self.graphs != "none" and len(lengths) > self.max_graphs:
            raise UserError(f"precapture: {len(lengths)} lengths, more than max_graphs, which is {self.max_graphs}")
        return tuple(sorted(lengths))


def _require_position(length: Any, positions: int) -> None:
    """Raise UserError for anything but a whole number from 1 to ``positions``."""
    try:
        number = index(length)
    except TypeError:
        number = 0
    if not 1 <= number <= positions:
        raise UserError(f"precapture {length!r}: a whole number, 1 or more, and there are {positions} positions")


def fitting(lengths: Iterable[int], positions: int, max_graphs: int) -> tuple[int, ...]:
    """Of ``lengths``, the least ones that the buffers and the pool have room for."""
    return tuple(sorted(length for length in set(lengths) if length <= positions)[:max_graphs])
