"""Command lines that are read twice: before anything is installed, and by the command itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybridgraph.cases import CASES, Case, family
from hybridgraph.config import MAX_LAUNCHES, Config
from hybridgraph.errors import UserError
from hybridgraph.settings import Program
from hybridgraph.system.command_line import parse_args

WITH_TENSORRT, LAUNCHES = "--with-tensorrt-llm", "--launches"
ABOUT_STUDY = f"""\
Measures every case of the study on this machine, then prints the tables.
{WITH_TENSORRT} adds Case 5, in an environment of its own. {LAUNCHES} N starts every case N times, in an order that
alternates, so that the tables can tell how much launches differ. Every other flag goes to every case."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a complete run was asked for. ``flags`` go to every case; ``config`` is what they mean."""

    config: Config
    flags: tuple[str, ...]
    with_tensorrt_llm: bool
    launches: int


def study(argv: Sequence[str]) -> Study:
    """What a complete run is asked for; raises UserError."""
    launches, rest = _launches(argv)
    flags = tuple(argument for argument in rest if argument != WITH_TENSORRT)
    config = parse_args(flags, Program.STUDY, CASES, description=ABOUT_STUDY)
    return Study(config=config, flags=flags, with_tensorrt_llm=len(flags) < len(rest), launches=launches)


def _launches(argv: Sequence[str]) -> tuple[int, list[str]]:
    """How often each case is started, and what else was asked for; raises UserError."""
    values, rest, words = ["1"], [], iter(argv)
    for word in words:
        flag, has_value, value = word.partition("=")
        if flag == LAUNCHES:
            values.append(value if has_value else next(words, ""))
        else:
            rest.append(word)
    if not (values[-1].isascii() and values[-1].isdigit() and 1 <= int(values[-1]) <= MAX_LAUNCHES):
        raise UserError(f"{LAUNCHES} {values[-1]}: a whole number from 1 to {MAX_LAUNCHES}")
    return int(values[-1]), rest


def pair(case: Case, argv: Sequence[str], description: str | None = None) -> Config:
    """The configuration of a generator and its client, which choose their own socket; raises UserError."""
    return parse_args(argv, Program.PAIR, family(case), description=description)
