"""Everything that is derived from result files, in one go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hybridgraph.errors import UserError
from hybridgraph.output import printing
from hybridgraph.progress import say
from hybridgraph.report.load import Results, load_results
from hybridgraph.report.markdown import provenance, render
from hybridgraph.report.plots import is_emulated, plot_growth, plot_table
from hybridgraph.report.tables import DECODE, P99, TTFT, WARM, Table, build_table

FILES = {"ttft": "final_ttft_table.csv", "p99": "final_p99_table.csv", "decode": "final_decode_table.csv"}
REPORT = "final_report.md"


def generate_final_tables(argv: Sequence[str] | None = None) -> int:
    """Write tables, plots and report of a directory of results; returns the exit code."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--output-dir", default="output", metavar="DIR", help="where the results are (default: output)")
    parser.add_argument("--json", action="store_true", help="the last line of standard output is one JSON document")
    arguments = parser.parse_args(argv)
    try:
        directory = Path(arguments.output_dir)
        results = load_results(directory)
        tables = {
            metric.key: build_table(results, metric)
            for metric in (TTFT, WARM, P99, DECODE)
            if _has(results, metric.kind)
        }
        try:
            _write(directory, results, tables)
        except OSError as error:
            raise UserError(f"cannot write to {directory}: {error.strerror or error}") from None
        with printing():
            _show(results, tables)
            if arguments.json:
                print(json.dumps(_document(results, tables)))
    except UserError as error:
        say(f"error: {error}")
        return 2
    return 0


def _has(results: Results, kind: str) -> bool:
    return kind != "decode" or bool(results.tables["decode"])


def _write(directory: Path, results: Results, tables: dict[str, Table]) -> None:
    plots = []
    for key, table in tables.items():
        if key in FILES:
            table.frame().to_csv(directory / FILES[key], index=False, float_format="%.4f", lineterminator="\n")
        if key != TTFT.key and table.measured:
            name = f"final_{'ttft' if key == WARM.key else key}.png"
            plot_table(table, results, directory / name)
            plots.append(name)
    if results.sweep is not None:
        plot_growth(results.sweep, directory / "final_growth.png")
        plots.append("final_growth.png")
    (directory / REPORT).write_text(render(results, tables, plots), encoding="utf-8")


def _show(results: Results, tables: dict[str, Table]) -> None:
    print(provenance(results))
    if is_emulated(results):
        print("graphs are EMULATED: these are not CUDA Graph results")
    for table in tables.values():
        print(f"\n{table.metric.heading}, ms")
        narrow = ["tokens", *(case.column for case in table.cases), "winner"]  # as a terminal has room for
        frame = table.frame().set_axis(narrow, axis="columns")
        print(frame.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.2f}"))
    print()
    for case in results.missing():
        print(f"{case.title}: empty, {results.why_missing(case)}")
    for sentence in (*results.left_out, *results.remarks):
        print(sentence)


def _document(results: Results, tables: dict[str, Table]) -> dict[str, object]:
    return {
        "identity": results.identity,
        "left_out": results.left_out,
        "remarks": results.remarks,
        "tables": {
            key: {
                "rows": json.loads(table.frame().to_json(orient="records")),
                "speedups": table.speedups(),
            }
            for key, table in tables.items()
        },
    }
