"""The entry point behind ``generate_final_tables.py``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hybridgraph.config import SETTINGS, RunSettings
from hybridgraph.errors import UserError
from hybridgraph.places import OUTPUT, SHOWN, find_results
from hybridgraph.settings import Program, parse_path
from hybridgraph.system.command_line import Parser
from hybridgraph.system.console import guarded, printing, say

WHERE = replace(
    SETTINGS["output_dir"],
    help="where the results are, or published/NAME",
    unset=f"{OUTPUT}; while it is empty, published/{SHOWN.name}",
)


@guarded(interrupted="interrupted")
def generate_final_tables(argv: Sequence[str] | None = None) -> int:
    """Print the tables of a directory of results; write them, plots and report there. Returns the exit code.

    With ``--compare``, what changed between runs instead.
    """
    parser = Parser(sys.modules["__main__"].__doc__, Program.TABLES)
    parser.add_settings("files", [WHERE, SETTINGS["json"]])
    parser.add_argument("--brief", action="store_true", help="print the averages alone, as a complete run does")
    _add_page(parser)
    _add_comparison(parser)
    given = vars(parser.parse_args(argv))
    settings = RunSettings.of(**{name: given.pop(name) for name in (WHERE.name, "json") if name in given})
    if "compare" in given:
        return _compare(settings, **given)
    if misplaced := {"across", "fail_above"} & given.keys():
        raise UserError(f"--{misplaced.pop().replace('_', '-')} belongs to --compare DIR DIR")
    from hybridgraph.report.final import write_final_tables

    undrawn = write_final_tables(_directory(settings), as_json=settings.json, **given)
    for sentence in undrawn:
        say(sentence)
    return 1 if undrawn else 0


def _add_page(parser: Parser) -> None:
    group = parser.add_argument_group("page")
    group.add_argument(
        "--page",
        type=_path,
        metavar="FILE",
        help="where the page to look at goes (default: final_report.html beside the tables)",
    )
    group.add_argument(
        "--beside", type=find_results, metavar="DIR", help="another run, shown beside this one on the page"
    )


def _add_comparison(parser: Parser) -> None:
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="what is faster or slower than in the first run, beyond the noise; published/NAME is a run, too",
    )
    group.add_argument("--across", action="store_true", help="compare other GPUs, models or precisions all the same")
    group.add_argument(
        "--fail-above",
        type=_percent,
        metavar="PERCENT",
        help="exit with 1 where something is slower beyond the noise, and by more than this",
    )


def _path(text: str) -> Path:
    return Path(parse_path(text))


def _percent(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def _compare(
    settings: RunSettings,
    compare: Sequence[str],
    across: bool = False,
    fail_above: float | None = None,
    **other: object,
) -> int:
    if len(compare) < 2:
        raise UserError(f"--compare {compare[0]}: two runs or more are compared")
    if other:
        raise UserError(f"--{min(other)}: a comparison has no page")
    from hybridgraph.report import comparison
    from hybridgraph.report.final import write_comparisons

    first, *others = [comparison.open_run(name, find_results(name)) for name in compare]
    found = [comparison.compare(first, other, across=across) for other in others]
    write_comparisons(settings.output_path, found)
    with printing():
        return comparison.show(found, fail_above, as_json=settings.json)


def _directory(settings: RunSettings) -> Path:
    """The results that are meant; says so where those are published ones that nobody asked for."""
    from hybridgraph.report.load import result_files

    if WHERE.name in settings.given:
        return find_results(settings.output_dir)
    if result_files(OUTPUT) or not SHOWN.is_dir():
        return OUTPUT
    with printing():
        print(f"{OUTPUT} has no results of yours. This is the published run published/{SHOWN.name}.\n")
    return SHOWN
