"""The entry point behind ``generate_final_tables.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hybridgraph.config import Parser
from hybridgraph.places import OUTPUT, SHOWN, find_results
from hybridgraph.system.console import guarded, printing


@guarded(interrupted="interrupted")
def generate_final_tables(argv: Sequence[str] | None = None) -> int:
    """Print the tables of a directory of results; write them, plots and report there. Returns the exit code."""
    parser = Parser(sys.modules["__main__"].__doc__)
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help=f"where the results are, or published/NAME (default: {OUTPUT}; while it is empty, published/{SHOWN.name})",
    )
    parser.add_argument("--json", action="store_true", help="the last line of standard output is one JSON document")

    arguments = parser.parse_args(argv)
    from hybridgraph.report.final import write_final_tables

    write_final_tables(_directory(arguments.output_dir), as_json=arguments.json)
    return 0


def _directory(asked: str | None) -> Path:
    """The results that are meant; says so where those are published ones that nobody asked for."""
    from hybridgraph.report.load import result_files

    if asked is not None:
        return find_results(asked)
    if result_files(OUTPUT) or not SHOWN.is_dir():
        return OUTPUT
    with printing():
        print(f"{OUTPUT} has no results of yours. This is the published run published/{SHOWN.name}.\n")
    return SHOWN
