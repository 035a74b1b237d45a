"""Everything that is derived from result files, in one go."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill

import pandas as pd

from hybridgraph.cases import CASES, PEERS
from hybridgraph.errors import one_line
from hybridgraph.places import is_published, require_own
from hybridgraph.report.ablation import Variant, read_variants
from hybridgraph.report.answer import answer
from hybridgraph.report.claims import Finding, claims_frame, findings
from hybridgraph.report.comparison import Comparison
from hybridgraph.report.ending import ending
from hybridgraph.report.evidence import Evidence, gather, intervals_frame
from hybridgraph.report.grid import WIDTH, plain
from hybridgraph.report.load import Results, load_results
from hybridgraph.report.markdown import LEGEND, is_judged, notes, provenance, render
from hybridgraph.report.tables import DECODE, METRICS, P99, WARM, Metric, Table, averages_frame, build_table
from hybridgraph.system.console import printing, progress_bars
from hybridgraph.system.files import write_atomically, writing

PLOTTED = (WARM, P99, DECODE)  # the protocol's mean is mostly the first request of a process
AVERAGES, INTERVALS, CLAIMS = "final_averages.csv", "final_intervals.csv", "final_claims.csv"
GROWTH = "final_growth.png"
REPORT, PAGE, COMPARISON = "final_report.md", "final_report.html", "final_comparison"


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
    evidence: Evidence
    undrawn: Container[str] = ()  # the plots that could not be drawn

    @property
    def plots(self) -> list[str]:
        """The files of its plots."""
        wanted = [plot_name(m) for m in PLOTTED if m.key in self.tables and self.tables[m.key].measured]
        return [name for name in wanted + [GROWTH] * self.has_growth if name not in self.undrawn]

    @property
    def has_growth(self) -> bool:
        """Whether a run over many lengths lies beside the results, with times."""
        return self.results.sweep is not None and bool(self.results.sweep["warm_mean_ms"].notna().any())

    def findings(self) -> list[Finding]:
        """What was measured of the study's claims."""
        return findings(self.tables, self.evidence, judged=is_judged(self.results))

    def texts(self) -> dict[str, str]:
        """The content of every file but the plots, by its name."""
        frames = {table_name(table.metric): table.frame() for table in self.tables.values()}
        frames[AVERAGES] = averages_frame(list(self.tables.values()))
        frames[INTERVALS] = intervals_frame(self.tables.values(), self.evidence)
        frames[CLAIMS] = claims_frame(self.findings())
        texts = {name: self._as_csv(frame) for name, frame in frames.items()}
        return texts | {REPORT: render(self.results, self.tables, self.evidence, self.plots, self.variants)}

    def _as_csv(self, frame: pd.DataFrame) -> str:
        frame = frame.assign(graphs="emulated") if self.results.is_emulated else frame
        return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def derive(directory: Path) -> Derived:
    """Read the results of ``directory`` and those beside them; raises UserError."""
    results = load_results(directory)
    variants, left_out = read_variants(directory, results)
    results.left_out.extend(left_out)
    evidence = gather(directory, results, (*CASES, *PEERS))
    wanted = [metric for metric in METRICS if metric.kind != "decode" or results.tables["decode"]]
    tables = {metric.key: build_table(results, metric, evidence.alike(metric)) for metric in wanted}
    return Derived(results, tables, variants, evidence)


def write_final_tables(
    directory: Path, *, as_json: bool, brief: bool = False, page: Path | None = None, beside: Path | None = None
) -> list[str]:
    """Print the tables of ``directory``'s results, and write them with plots and report there; raises UserError.

    Published results are only printed. ``brief``: print the averages alone; ``page``: where the page goes instead;
    ``beside``: a second run that it shows. Returns a sentence for each plot that could not be drawn.
    """
    failed: dict[str, str] = {}
    with progress_bars(ticking=True) as bars:
        bars("reading results", 0, 1)
        derived = derive(directory)
        if not is_published(directory):
            bars("tables and plots", 0, 1)
            failed = _write(directory, derived)
            page = page or directory / PAGE
        if page is not None:
            bars("page", 0, 1)
            _write_page(page, derived, beside)
    with printing():
        if brief:
            paths = directory / REPORT, page or directory / PAGE
            print("\n".join(ending(derived.results, derived.tables, derived.findings(), *paths)))
        else:
            _show(derived)
        if as_json:
            print(json.dumps(_document(derived)))
    return [f"{name} could not be drawn: {reason}" for name, reason in failed.items()]


def _write(directory: Path, derived: Derived) -> dict[str, str]:
    """Write tables and report, then the plots; returns those that could not be drawn, and why."""
    plots = [*map(plot_name, METRICS), GROWTH]
    drawings = [plot.replace(".png", ".svg") for plot in plots]
    for name in (*map(table_name, METRICS), AVERAGES, INTERVALS, CLAIMS, *plots, *drawings):
        with writing(directory / name):
            (directory / name).unlink(missing_ok=True)  # what it shows may be gone
    for name, text in derived.texts().items():
        write_atomically(directory / name, text)
    if failed := _draw(directory, derived):
        write_atomically(directory / REPORT, replace(derived, undrawn=failed).texts()[REPORT])
    return failed


def _draw(directory: Path, derived: Derived) -> dict[str, str]:
    """Draw the plots; returns those that could not be drawn, and why."""
    failed = {}
    for name in derived.plots:
        try:
            _plot(derived, directory / name)
        except Exception as error:  # whatever matplotlib and this machine are at odds about
            failed[name] = one_line(error)
    return failed


def _plot(derived: Derived, path: Path) -> None:
    from hybridgraph.report.plots import plot_growth, plot_table  # only now: tables do without matplotlib

    if path.name == GROWTH and derived.results.sweep is not None:
        plot_growth(derived.results.sweep, path)
    for metric in PLOTTED:
        if path.name == plot_name(metric):
            plot_table(derived.tables[metric.key], derived.results, derived.evidence, path)


def _write_page(path: Path, own: Derived, beside: Path | None) -> None:
    from hybridgraph.report.charts import Shown
    from hybridgraph.report.page import render_page, texts_of

    require_own(path)
    other = None
    if beside is not None:
        found = derive(beside)
        other = Shown(beside.name, found.results, found.evidence)
    sentences = answer(own.results, own.evidence, own.tables)
    texts = texts_of(own.results, own.tables, own.evidence)
    with writing(path):
        write_atomically(path, render_page(Shown("", own.results, own.evidence), sentences, texts, other))


def write_comparisons(directory: Path, comparisons: Sequence[Comparison]) -> None:
    """Write what changed to ``directory``, as CSV and as a plot each; raises UserError where that is published."""
    from hybridgraph.report.plots import plot_changes

    require_own(directory)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        frame = pd.concat([comparison.frame() for comparison in comparisons], ignore_index=True)
        text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
        write_atomically(directory / f"{COMPARISON}.csv", text)
        for number, comparison in enumerate(comparisons, start=1):
            name = f"{COMPARISON}.png" if len(comparisons) == 1 else f"{COMPARISON}_{number}.png"
            plot_changes(comparison.heading(), comparison.changes, directory / name)


def _show(derived: Derived) -> None:
    _print_wrapped([*provenance(derived.results), LEGEND.format(mark="*"), derived.evidence.told()])
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
