"""The entry point behind ``generate_final_tables.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hybridgraph.config import SETTINGS, RunSettings
from hybridgraph.places import OUTPUT, SHOWN, find_results
from hybridgraph.settings import Program
from hybridgraph.system.command_line import Parser
from hybridgraph.system.console import guarded, printing

WHERE = replace(
    SETTINGS["output_dir"],
    help="where the results are, or published/NAME",
    unset=f"{OUTPUT}; while it is empty, published/{SHOWN.name}",
)


@guarded(interrupted="interrupted")
def generate_final_tables(argv: Sequence[str] | None = None) -> int:
    """Print the tables of a directory of results; write them, plots and report there. Returns the exit code."""
    parser = Parser(sys.modules["__main__"].__doc__, Program.TABLES)
    parser.add_settings("files", [WHERE, SETTINGS["json"]])
    settings = RunSettings.of(**vars(parser.parse_args(argv)))
    from hybridgraph.report.final import write_final_tables

    write_final_tables(_directory(settings), as_json=settings.json)
    return 0


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
