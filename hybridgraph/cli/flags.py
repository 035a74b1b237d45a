"""Command lines that are read twice: before anything is installed, and by the command itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybridgraph.cases import CASES, Case, family
from hybridgraph.config import Config
from hybridgraph.settings import Program
from hybridgraph.system.command_line import parse_args

WITH_TENSORRT = "--with-tensorrt-llm"
ABOUT_STUDY = f"""\
Measures every case of the study on this machine, then prints the tables.
{WITH_TENSORRT} adds Case 5, in an environment of its own; every other flag goes to every case."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a complete run was asked for. ``flags`` go to every case; ``config`` is what they mean."""

    config: Config
    flags: tuple[str, ...]
    with_tensorrt_llm: bool


def study(argv: Sequence[str]) -> Study:
    """What a complete run is asked for; raises UserError."""
    flags = tuple(argument for argument in argv if argument != WITH_TENSORRT)
    config = parse_args(flags, Program.STUDY, CASES, description=ABOUT_STUDY)
    return Study(config=config, flags=flags, with_tensorrt_llm=len(flags) < len(argv))


def pair(case: Case, argv: Sequence[str], description: str | None = None) -> Config:
    """The configuration of a generator and its client, which choose their own socket; raises UserError."""
    return parse_args(argv, Program.PAIR, family(case), description=description)
