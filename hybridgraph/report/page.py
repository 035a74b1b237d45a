"""``final_report.html``: the whole report to look at, one file that opens from a disk without a network.

Plotly draws the charts and is bundled in the page; the texts are Markdown.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import plotly.io
from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

from hybridgraph.cases import Case
from hybridgraph.report import charts
from hybridgraph.report.charts import BESIDE_GLYPH, BESIDE_META, FLOOR_META, Figure, Shown
from hybridgraph.report.evidence import Evidence
from hybridgraph.report.lines import about_run
from hybridgraph.report.load import Results
from hybridgraph.report.markdown import certainty_section, claims_section, economics_section, notes, rates_of
from hybridgraph.report.palette import BACKGROUND, FLOOR, GRID, MUTED, TEXT, look_of
from hybridgraph.report.tables import Table

TEMPLATE = Path(__file__).with_name("page.html")
ACCENT = "#0969da"
_CONFIG = {"responsive": True, "displaylogo": False, "displayModeBar": False}
_TITLES = {
    "ttft": "TTFT of the protocol's requests",
    "warm_ttft": "Warm TTFT",
    "p99": "P99 of TTFT",
    "decode": "Time between tokens (ITL)",
}


@dataclass(frozen=True)
class Text:
    """A part of the page in Markdown."""

    heading: str
    markdown: str
    is_open: bool = True  # whether it is unfolded at first


def render_page(shown: Shown, answer: Sequence[str], texts: Iterable[Text], beside: Shown | None = None) -> str:
    """The page of one run, with a second one beside it where that is given.

    ``answer``: its first sentences, in Markdown; ``texts``: what stands below the charts.
    """
    runs = [shown, *([beside] if beside else [])]
    body = [
        "<h1>How low can the latency of one request go?</h1>",
        f'<p class="muted">{html.escape(about_run(shown.results.identity))}</p>',
        *(f'<p class="muted">Beside it, dotted: {html.escape(run.name)}.</p>' for run in runs[1:]),
        f'<div class="answer">{_markdown(" ".join(answer))}</div>',
        _bar(runs),
        *_charts(runs),
        *map(_text, texts),
    ]
    colors = {"text": TEXT, "muted": MUTED, "grid": GRID, "background": BACKGROUND, "accent": ACCENT}
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    title = f"hybridgraph: {html.escape(shown.results.identity['device'])}"
    return template.substitute(colors, title=title, library=get_plotlyjs(), body="\n".join(body))


def _text(text: Text) -> str:
    heading = f"<summary>{html.escape(text.heading)}</summary>"
    return f"<details{' open' * text.is_open}>{heading}{_markdown(text.markdown)}</details>"


def _charts(runs: Sequence[Shown]) -> Iterator[str]:
    for metric in runs[0].tables:
        note = "Solid: mean or percentile; band: 5th to 95th percentile of the requests; dashed: the hardware's floor."
        yield _chart(metric.key, _TITLES[metric.key], charts.over_length(metric, runs), note)
    yield _chart(
        "distribution",
        "Single requests",
        charts.distributions(runs),
        "Each point is one warm request, the box its quartiles. What lies far above is the tail.",
    )
    yield _chart(
        "warmth",
        "Cold, first seen, warm",
        charts.warmth(runs),
        "Means over the lengths. Cold: the first request of a process. First seen: the first at its prompt length. "
        "Warm: every other.",
    )
    yield _chart(
        "spent",
        "Where a request's time goes",
        charts.time_spent(runs),
        "Mean over the lengths. Full: from the first operation on the device to the last, gaps between them included. "
        "Crossed: what remains outside for the client, the transport and the host. Hatched: an engine's own host, "
        "where it tells when it had the first token. The samples part no further.",
    )
    yield _chart(
        "power",
        "Watts, clock and energy",
        charts.power(runs[0], spent(runs[0].results)),
        "By the driver's counters over each length's P99 requests, which are known to about a tenth.",
    )


def _chart(key: str, title: str, figure: Figure | None, note: str) -> str:
    if figure is None:
        return ""
    drawn = plotly.io.to_html(
        figure, config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=f"chart-{key}", validate=False
    )
    return (
        f"<details open><summary>{html.escape(title)}</summary>"
        f'<p class="note">{html.escape(note)}</p><div class="plot">{drawn}</div></details>'
    )


def _bar(runs: Sequence[Shown]) -> str:
    """The switches: a case each, the floor, and the second run."""
    cases: dict[str, Case] = {}
    for run in runs:
        for table in run.tables.values():
            cases |= {case.name: case for case in table.measured if case.name not in cases}
    switches = [(name, case.title, look_of(case).glyph, look_of(case).color) for name, case in cases.items()]
    switches.append((FLOOR_META, "floor", "╌", FLOOR))
    switches += [(BESIDE_META, run.name, BESIDE_GLYPH, FLOOR) for run in runs[1:]]
    labels = (
        f'<label><input type="checkbox" checked data-show="{html.escape(name)}"> '
        f'<span style="color:{color}">{glyph}</span> {html.escape(title)}</label>'
        for name, title, glyph, color in switches
    )
    return f'<div class="bar">{"".join(labels)}</div>'


@cache
def _reader() -> MarkdownIt:
    return MarkdownIt("js-default")  # with tables, and without HTML: a name in a result file is text


def _markdown(text: str) -> str:
    return str(_reader().render(text))


def texts_of(results: Results, tables: Mapping[str, Table], evidence: Evidence) -> list[Text]:
    """The parts of the report in words: what graphs cost, the claims, how sure everything is, the machine."""
    parts = {
        "What graphs cost": economics_section(results),
        "The study's claims": claims_section(results, tables, evidence),
        "How sure the figures are": f"{evidence.told()}\n\n{certainty_section(tables, evidence)}",
        "What a reader must know": "\n".join(f"- {note}" for note in notes(results)),
        "Environment": environment_text(results),
    }
    return [Text(heading, text, is_open=heading != "Environment") for heading, text in parts.items() if text]


def spent(results: Results) -> dict[Case, pd.DataFrame]:
    """What the GPU spent on the P99 requests, by case and prompt length; NaN where the driver did not tell."""
    found = {}
    for case in results.cases("p99"):
        rows = results.tables["p99"].get(case.name, pd.DataFrame({"samples": []}))
        samples = {int(length): float(count) for length, count in zip(rows.index, rows["samples"], strict=True)}
        told = {length: results.told(case, "gpu_spent", "p99", str(length)) for length in samples}
        rates = {length: rates_of(counted, samples[length]) for length, counted in told.items() if counted}
        frame = pd.DataFrame(rates).T.reindex(columns=list(charts.POWER_PANELS)).apply(pd.to_numeric, errors="coerce")
        if frame.notna().to_numpy().any():
            found[case] = frame.sort_index()
    return found


def environment_text(results: Results) -> str:
    """The machine, the versions and the settings of the newest run, as a table."""
    cases = results.environment["cases"]
    run_id = results.identity["run_id"]
    newest: dict[str, Any] = next((c for c in cases.values() if c.get("identity", {}).get("run_id") == run_id), {})
    facts = {**results.identity, **_flat(newest.get("source", {}).get("environment", {}))}
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value not in ("", None)]
    return "\n".join(["| what | value |", "| --- | --- |", *rows])


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")
