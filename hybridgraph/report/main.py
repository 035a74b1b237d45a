"""The entry point behind ``generate_final_tables.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hybridgraph.config import Parser
from hybridgraph.system.console import guarded


@guarded(interrupted="interrupted")
def generate_final_tables(argv: Sequence[str] | None = None) -> int:
    """Write tables, plots and report of a directory of results; returns the exit code."""
    parser = Parser(sys.modules["__main__"].__doc__)
    parser.add_argument("--output-dir", default="output", metavar="DIR", help="where the results are (default: output)")
    parser.add_argument("--json", action="store_true", help="the last line of standard output is one JSON document")

    arguments = parser.parse_args(argv)
    from hybridgraph.report.final import write_final_tables

    write_final_tables(Path(arguments.output_dir), as_json=arguments.json)
    return 0
