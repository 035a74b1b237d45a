"""Everything that is derived from result files, in one go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hybridgraph.report.ablation import Variant, read_variants
from hybridgraph.report.load import Results, load_results
from hybridgraph.report.markdown import provenance, render
from hybridgraph.report.plots import plot_growth, plot_table
from hybridgraph.report.tables import DECODE, P99, TTFT, WARM, Table, build_table
from hybridgraph.system.console import printing
from hybridgraph.system.files import writing

FILES = {"ttft": "final_ttft_table.csv", "p99": "final_p99_table.csv", "decode": "final_decode_table.csv"}
PLOTS = {"warm": "final_ttft.png", "p99": "final_p99.png", "decode": "final_decode.png"}
GROWTH = "final_growth.png"
REPORT = "final_report.md"


def write_final_tables(directory: Path, *, as_json: bool) -> None:
    """Write tables, plots and report of ``directory``'s results, and print them; raises UserError."""
    results = load_results(directory)
    variants, left_out = read_variants(directory, results)
    results.left_out.extend(left_out)
    tables = {
        metric.key: build_table(results, metric) for metric in (TTFT, WARM, P99, DECODE) if _has(results, metric.kind)
    }
    with writing(directory):
        _write(directory, results, tables, variants)
    with printing():
        _show(results, tables)
        if as_json:
            print(json.dumps(_document(results, tables)))


def _has(results: Results, kind: str) -> bool:
    return kind != "decode" or bool(results.tables["decode"])


def _write(directory: Path, results: Results, tables: dict[str, Table], variants: Sequence[Variant]) -> None:
    for name in (*FILES.values(), *PLOTS.values(), GROWTH):
        (directory / name).unlink(missing_ok=True)  # what it shows may be gone
    plots = []
    for key, table in tables.items():
        if key in FILES:
            frame = table.frame().assign(graphs="emulated") if results.is_emulated else table.frame()
            frame.to_csv(directory / FILES[key], index=False, float_format="%.4f", lineterminator="\n")
        if key in PLOTS and table.measured:
            plot_table(table, results, directory / PLOTS[key])
            plots.append(PLOTS[key])
    if results.sweep is not None:
        plot_growth(results.sweep, directory / GROWTH)
        plots.append(GROWTH)
    (directory / REPORT).write_text(render(results, tables, plots, variants), encoding="utf-8")


def _show(results: Results, tables: dict[str, Table]) -> None:
    print(provenance(results))
    if results.is_emulated:
        print("graphs are EMULATED: these are not CUDA Graph results")
    for table in tables.values():
        print(f"\n{table.metric.heading}, ms")
        narrow = ["tokens", *(case.column for case in table.cases), "winner"]  # as a terminal has room for
        frame = table.frame().set_axis(narrow, axis="columns")
        print(frame.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.2f}"))
        for rule in table.rules():
            print(rule)
    print()
    for case in results.missing():
        print(f"{case.title}: empty, {results.why_missing(case)}")
    for sentence in (*results.left_out, *results.remarks):
        print(sentence)


def _document(results: Results, tables: dict[str, Table]) -> dict[str, object]:
    return {
        "identity": results.identity,
        "emulated": results.is_emulated,
        "missing": {case.name: results.why_missing(case) for case in results.missing()},
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
