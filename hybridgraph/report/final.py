"""Everything that is derived from result files, in one go."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import pandas as pd

from hybridgraph.cases import CASES, PEERS
from hybridgraph.places import is_published
from hybridgraph.report.ablation import Variant, read_variants
from hybridgraph.report.grid import WIDTH, plain
from hybridgraph.report.load import Results, load_results
from hybridgraph.report.markdown import LEGEND, notes, provenance, render
from hybridgraph.report.tables import DECODE, METRICS, P99, WARM, Metric, Table, averages_frame, build_table
from hybridgraph.system.console import printing
from hybridgraph.system.files import writing

PLOTTED = (WARM, P99, DECODE)  # the protocol's mean is mostly the first request of a process
AVERAGES = "final_averages.csv"
GROWTH = "final_growth.png"
REPORT = "final_report.md"


def table_name(metric: Metric) -> str:
    """The file of a metric's table."""
    return f"final_{metric.key}_table.csv"


def plot_name(metric: Metric) -> str:
    """The file of a metric's plot."""
    return f"final_{metric.key}.png"


@dataclass(frozen=True)
class Derived:
    """What follows from the result files of a directory."""

    results: Results
    tables: dict[str, Table]  # by the metric's key
    variants: Sequence[Variant]

    @property
    def plots(self) -> list[str]:
        """The files of its plots."""
        drawn = [plot_name(m) for m in PLOTTED if m.key in self.tables and self.tables[m.key].measured]
        return drawn + [GROWTH] * self.has_growth

    @property
    def has_growth(self) -> bool:
        """Whether a run over many lengths lies beside the results, with times on a device."""
        return self.results.sweep is not None and bool(self.results.sweep["device_ms"].notna().any())

    def texts(self) -> dict[str, str]:
        """The content of every file but the plots, by its name."""
        frames = {table_name(table.metric): table.frame() for table in self.tables.values()}
        frames[AVERAGES] = averages_frame(list(self.tables.values()))
        texts = {name: self._as_csv(frame) for name, frame in frames.items()}
        return texts | {REPORT: render(self.results, self.tables, self.plots, self.variants)}

    def _as_csv(self, frame: pd.DataFrame) -> str:
        frame = frame.assign(graphs="emulated") if self.results.is_emulated else frame
        return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def derive(directory: Path) -> Derived:
    """Read the results of ``directory`` and those beside them; raises UserError."""
    results = load_results(directory)
    variants, left_out = read_variants(directory, results)
    results.left_out.extend(left_out)
    wanted = [metric for metric in METRICS if metric.kind != "decode" or results.tables["decode"]]
    return Derived(results, {metric.key: build_table(results, metric) for metric in wanted}, variants)


def write_final_tables(directory: Path, *, as_json: bool) -> None:
    """Print the tables of ``directory``'s results, and write them with plots and report there; raises UserError.

    Published results are only printed.
    """
    derived = derive(directory)
    if not is_published(directory):
        with writing(directory):
            _write(directory, derived)
    with printing():
        _show(derived)
        if as_json:
            print(json.dumps(_document(derived)))


def _write(directory: Path, derived: Derived) -> None:
    plots = [*map(plot_name, METRICS), GROWTH]
    drawings = [plot.replace(".png", ".svg") for plot in plots]
    for name in (*map(table_name, METRICS), AVERAGES, *plots, *drawings):
        (directory / name).unlink(missing_ok=True)  # what it shows may be gone
    for name, text in derived.texts().items():
        (directory / name).write_text(text, encoding="utf-8")
    _draw(directory, derived)


def _draw(directory: Path, derived: Derived) -> None:
    from hybridgraph.report.evidence import gather  # only now: tables do without scipy and matplotlib
    from hybridgraph.report.plots import plot_growth, plot_table

    evidence = gather(directory, derived.results, (*CASES, *PEERS))
    for metric in PLOTTED:
        if plot_name(metric) in derived.plots:
            plot_table(derived.tables[metric.key], derived.results, evidence, directory / plot_name(metric))
    if derived.results.sweep is not None and derived.has_growth:
        plot_growth(derived.results.sweep, directory / GROWTH)


def _show(derived: Derived) -> None:
    _print_wrapped([*provenance(derived.results), LEGEND.format(mark="*")])
    if derived.results.is_emulated:
        print("graphs are EMULATED: these are not CUDA Graph results")
    for table in derived.tables.values():
        print(f"\n{table.metric.heading}, ms\n{plain(*table.text(winner='{}*', other='{} '))}")
        _print_wrapped(table.rules())
    print()
    _print_wrapped(notes(derived.results))


def _print_wrapped(lines: Iterable[str]) -> None:
    for line in lines:
        print(fill(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def _document(derived: Derived) -> dict[str, object]:
    results = derived.results
    return {
        "identity": results.identity,
        "emulated": results.is_emulated,
        "missing": {case.name: results.why_missing(case) for case in results.missing()},
        "left_out": results.left_out,
        "remarks": results.remarks,
        "tables": {
            key: {
                "rows": json.loads(table.frame().to_json(orient="records")),
                "averages": table.averages,
                "speedups": {case.title: table.speedups[case.column] for case in table.measured if table.speedups},
            }
            for key, table in derived.tables.items()
        },
    }
