"""What is known of one setting: its record, from which everything else that is said of settings is derived."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from enum import Enum, auto
from operator import index
from typing import Any

from hybridgraph.cases import Case, Part
from hybridgraph.errors import UserError

MAX_ITERATIONS = 1_000_000  # a raw sample is about 1 KiB in memory: beyond this a run could not hold its own


class Program(Enum):
    """What a command line starts."""

    CASE = auto()  # a case that runs in one process
    PAIR = auto()  # a generator and its client
    CLIENT = auto()
    GENERATOR = auto()
    STUDY = auto()  # every case, one after the other
    TABLES = auto()


MEASURING = frozenset({Program.CASE, Program.PAIR, Program.CLIENT, Program.STUDY})
OPENING = MEASURING | {Program.GENERATOR}  # a client is told what its generator was opened with


class Told(Enum):
    """Where a reader of results learns a setting's value."""

    BY_ROWS = auto()  # a column of them says so, or the case that they are of
    WHERE_UNUSUAL = auto()  # beside the tables, where it is not the default
    WHERE_DIFFERENT = auto()  # beside the tables, where the cases differ in it
    NOWHERE = auto()  # a place, or what is printed: it decides no result, so that a resumed run may have another


def parse_lengths(text: str) -> tuple[int, ...]:
    """Parse ``"1-50"`` (a range), ``"10-500:10"`` (a step range) or ``"10,20,64"`` (a list), ends included.

    Raises UserError for anything else.
    """
    lengths: list[int] = []
    for part in text.split(","):
        span, _, step = part.strip().partition(":")
        first, dash, last = span.partition("-")
        try:
            low = int(first)
            high, stride = (int(last) if dash else low), (int(step) if step else 1)
        except ValueError:
            raise UserError(f"'{text}' is no list of lengths: write 1-50, 10-500:10 or 10,20,64") from None
        if low < 1 or high < low or stride < 1:
            whole = f" in '{text}'" if part.strip() != text else ""
            raise UserError(f"'{part.strip()}'{whole} is no range of lengths: they start at 1 and ascend")
        if high > MAX_ITERATIONS:
            raise UserError(f"length {high} in '{text}' is beyond any model's positions")
        lengths += range(low, high + 1, stride)
    return tuple(dict.fromkeys(lengths))


def parse_path(text: str) -> str:
    """Put the home directory in place of a leading ``~``, which a shell leaves alone behind ``=``."""
    return os.path.expanduser(text)  # noqa: PTH111  # a Path would turn "" into "."


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Setting:
    """The record of one setting. ``name`` and ``default`` are those of its field."""

    help: str
    _: KW_ONLY
    unset: str = ""  # what a default of None means
    metavar: str | None = None
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None  # the least and the most that it can be
    advice: str = ""  # what else to do where it is out of its limits
    part: Part | None = None  # of a case that it is about; None: every case uses it
    programs: frozenset[Program] = MEASURING  # whose user may choose it
    needed_by: frozenset[Program] = frozenset()  # which cannot do without it
    opens: bool = False  # a running generator has its own: a client that asks for another is refused
    separates: str = ""  # the column in which rows must agree to share a table
    told: Told = Told.WHERE_UNUSUAL  # where it separates rows: BY_ROWS
    meaning: Callable[[Any], Any] = _itself  # what two spellings of a value have in common
    name: str = ""
    default: Any = None

    def __post_init__(self) -> None:
        if self.separates:
            object.__setattr__(self, "told", Told.BY_ROWS)

    @property
    def flag(self) -> str:
        """How the setting is spelled on a command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def decides(self) -> bool:
        """Whether results depend on it."""
        return self.told is not Told.NOWHERE

    def concerns(self, case: Case) -> bool:
        """Whether ``case`` has what this setting is about."""
        return self.part is None or self.part in case.parts

    def used_by(self, program: Program, case: Case) -> bool:
        """Whether it changes anything for ``program``, run for ``case``."""
        return program in self.programs and self.concerns(case)

    def argument(self, value: Any) -> str:
        """Return the one word of a command line that gives the setting ``value``."""
        if isinstance(value, bool):
            return self.flag if value else f"--no-{self.flag.removeprefix('--')}"
        return f"{self.flag}={self.as_text(value)}"

    def as_flag(self, value: Any) -> str:
        """Return the same as a person would type it."""
        return self.argument(value) if isinstance(value, bool) else f"{self.flag} {shlex.quote(self.as_text(value))}"

    def as_text(self, value: Any) -> str:
        """Return ``value`` as ``parse`` reads it."""
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def check(self, value: Any, called: str = "") -> None:
        """Raise UserError for a value that nobody can use. ``called``: what its user calls the setting."""
        if value is not None or self.default is not None:
            self.require(value, called)

    def require(self, value: Any, called: str = "") -> None:
        """Raise UserError for a value that nobody can use, or for none."""
        called = called or self.flag
        if self.choices and value not in self.choices:
            raise UserError(f"{called} {value!r}: one of {', '.join(self.choices)}")
        if isinstance(self.default, bool) and not isinstance(value, bool):
            raise UserError(f"{called} {value!r}: True or False")
        if self.limits is not None:
            self._require_number(value, called, *self.limits)
        elif self.parse in (str, parse_path) and not isinstance(self.default, bool):
            _require_text(value, called)

    def _require_number(self, value: Any, called: str, least: float, most: float) -> None:
        try:
            number = index(value) if self.parse is int else float(value)
        except (TypeError, ValueError):
            kind = "a whole number" if self.parse is int else "a number"
            raise UserError(f"{called} {value!r}: {kind} from {least} to {most}") from None
        if not least <= number <= most:
            raise UserError(f"{called} {value}: from {least} to {most}{self.advice}")


def _require_text(value: Any, called: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"{called} {value!r}: a text")
    if not value:
        raise UserError(f"{called} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{called} {value!a}: a name that is no UTF-8 cannot be recorded") from None
