"""The charts of the page, as plotly draws them: each a figure of plain values, a trace or more a case.

A trace carries its case's name in ``meta``, by which the page switches cases on and off in all charts at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hybridgraph.cases import Case
from hybridgraph.report.evidence import Evidence
from hybridgraph.report.lines import APART, AXES, LENGTH_AXIS, band_of, floor_of
from hybridgraph.report.load import Results
from hybridgraph.report.palette import BACKGROUND, FLOOR, GRID, MUTED, TEXT, look_of
from hybridgraph.report.tables import METRICS, Metric, Table, build_table

Figure = dict[str, Any]
Trace = dict[str, Any]
FLOOR_META, BESIDE_META = "floor", "beside"
BESIDE_GLYPH = "◌"
DIGITS = 5  # significant ones, of everything that is drawn
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": TEXT}
_AXIS = {"gridcolor": GRID, "linecolor": MUTED, "zeroline": False, "automargin": True}
_POINTED = "%{x} tokens: %{y:.2f} ms"
POWER_PANELS = {  # what the report calls it, and the axis
    "Power, W": "power, W",
    "SM clock after the row, MHz": "SM clock, MHz",
    "Energy of a request, J": "energy a request, J",
}
_LOG = {"type": "log", "tickmode": "array", "tickvals": [d * 10**e for e in range(-2, 6) for d in (1, 2, 5)]}
_SCALES = [
    {
        "label": name,
        "method": "relayout",
        "args": [{f"yaxis.{key}": value for key, value in axis.items()} | {"yaxis.autorange": True}],
    }
    for name, axis in (("from zero", {"type": "linear", "tickmode": "auto"}), ("logarithmic", _LOG))
]


@dataclass(frozen=True)
class Shown:
    """One run on the page. ``name`` is empty for the page's own run; a second one beside it is told by its name."""

    name: str
    results: Results
    evidence: Evidence

    @property
    def tables(self) -> dict[Metric, Table]:
        wanted = [m for m in METRICS if self.results.tables[m.kind]]
        return {metric: build_table(self.results, metric) for metric in wanted}

    def mark(self, case: Case) -> str:
        """The name of a case on an axis; a second run's is marked as its switch is."""
        return f"{BESIDE_GLYPH} {case.title}" if self.name else case.title

    def trace(self, case: Case, **fields: Any) -> Trace:
        """A trace of ``case`` in its color; a second run's is told apart by its name, and by open markers."""
        name = f"{case.title}, {self.name}" if self.name else case.title
        return {"name": name, "meta": [case.name, *([BESIDE_META] if self.name else [])], "showlegend": False} | fields


def over_length(metric: Metric, runs: Sequence[Shown]) -> Figure:
    """A metric over prompt length, with bands and the floor."""
    traces: list[Trace] = []
    for run in runs:
        if metric in run.tables:
            traces += _bands(metric, run) if not run.name else ()
            traces += _lines(metric, run)
    lowest = [min(y) for t in traces if (y := [v for v in t["y"] if v])]
    return _figure(traces, LENGTH_AXIS, AXES[metric], height=430, scales=True, log=max(lowest) >= APART * min(lowest))


def _lines(metric: Metric, run: Shown) -> Iterator[Trace]:
    table = run.tables[metric]
    for case in table.measured:
        look, values = look_of(case), table.values[case.column].dropna()
        yield run.trace(
            case,
            x=list(values.index),
            y=rounded(values),
            mode="lines+markers",
            line={"color": look.color, "width": 2, "dash": "dot" if run.name else "solid"},
            marker={"symbol": look.symbol + ("-open" if run.name else ""), "size": 8, "color": look.color},
            hovertemplate=_POINTED,
        )
    if (found := floor_of(table, run.results)) is not None and not run.name:
        yield {
            "name": "floor",
            "meta": [FLOOR_META],
            "showlegend": False,
            "x": list(found[1].index),
            "y": rounded(found[1]),
            "mode": "lines",
            "line": {"color": FLOOR, "width": 2, "dash": "dash"},
            "hovertemplate": _POINTED,
        }


def _bands(metric: Metric, run: Shown) -> Iterator[Trace]:
    for case in run.tables[metric].measured:
        band = band_of(run.evidence.samples.get(case.name), metric)
        if band is not None:
            low, high = (rounded(band[column]) for column in band)
            yield run.trace(
                case,
                x=[*band.index, *reversed(band.index)],
                y=[*high, *reversed(low)],
                mode="lines",
                fill="toself",
                fillcolor=_transparent(look_of(case).color),
                line={"width": 0},
                hoverinfo="skip",
            )


def distributions(runs: Sequence[Shown]) -> Figure | None:
    """Every warm request at one prompt length, a box and its points a case; the length is chosen in a menu."""
    warm = [
        (run, case, samples[(samples["warmth"] == "warm") & (samples["phase"] != "decode")])
        for run in runs
        for case in run.results.cases("ttft")
        if (samples := run.evidence.samples.get(case.name)) is not None
    ]
    lengths = sorted({int(n) for _, _, samples in warm for n in samples["prompt_length"]})
    if not lengths:
        return None

    def times(samples: pd.DataFrame, length: int) -> list[float | None]:
        return rounded(samples["ttft_ms"][samples["prompt_length"] == length])

    traces = [_box(run, case, times(samples, lengths[-1])) for run, case, samples in warm]
    buttons = [
        {
            "label": f"{length} tokens",
            "method": "restyle",
            "args": [{"y": [times(samples, length) for _, _, samples in warm]}],
        }
        for length in lengths
    ]
    return _figure(
        traces, "", "TTFT of each warm request, ms", height=430, menu=_menu(buttons, len(lengths) - 1), log=True
    )


def _box(run: Shown, case: Case, times: Sequence[float | None]) -> Trace:
    look = look_of(case)
    return run.trace(
        case,
        type="box",
        x0=run.mark(case),
        y=times,
        boxpoints="all",
        jitter=0.6,
        pointpos=0,
        marker={"color": look.color, "size": 4, "symbol": look.symbol, "opacity": 0.6},
        line={"color": look.color, "width": 1.5},
        fillcolor="rgba(0,0,0,0)",
        hovertemplate="%{y:.2f} ms",
    )


def warmth(runs: Sequence[Shown]) -> Figure:
    """A process's first request, the first at a length, and every other: a bar each, by case."""
    columns = {"cold": "cold_ms", "first seen": "first_seen_ms", "warm": "warm_mean_ms"}
    traces = []
    for run in runs:
        for case in run.results.cases("ttft"):
            rows = run.results.tables["ttft"].get(case.name)
            if rows is not None:
                means = [rows[column].mean() for column in columns.values()]
                traces.append(
                    run.trace(
                        case,
                        type="bar",
                        x=list(columns),
                        y=rounded(means),
                        marker=_bar(case, "/" if run.name else ""),
                        hovertemplate="%{x}: %{y:.2f} ms",
                    )
                )
    return _figure(traces, "", "TTFT, ms", height=380, scales=True, log=True)


def time_spent(runs: Sequence[Shown]) -> Figure | None:
    """Of a warm request's time, what its device takes and what the rest does, a stack a case.

    A source tells its device's time, some also when the engine had the first token. What remains is the client's, the
    transport's and the host's; the samples do not part them.
    """
    traces = []
    for run in runs:
        for case in run.results.cases("ttft"):
            rows = run.results.tables["ttft"].get(case.name)
            if rows is not None:
                traces += list(_stack(run, case, rows))
    return _figure(traces, "", "warm TTFT, ms", height=380, barmode="stack") if traces else None


def _stack(run: Shown, case: Case, rows: pd.DataFrame) -> Iterator[Trace]:
    whole, device, engine = (rows[c].mean() for c in ("warm_mean_ms", "device_ms", "engine_ttft_ms"))
    known = [(name, value) for name, value in (("device", device), ("engine's host", engine)) if value == value]
    below = 0.0
    rest = "host, in one process" if not case.generator else "client, transport and host"
    for (name, until), pattern in zip([*known, (rest, whole)], ("", "/", "x")[-len(known) - 1 :], strict=True):
        yield run.trace(
            case,
            type="bar",
            x=[run.mark(case)],
            y=rounded([max(until - below, 0.0)]),
            marker=_bar(case, "" if name == "device" else pattern or "/"),
            text=f"{until - below:.2f} outside" if name == rest and known else "",
            textposition="outside",
            hovertemplate=f"{name}: %{{y:.3f}} ms",
        )
        below = until


def power(run: Shown, rates: Mapping[Case, pd.DataFrame]) -> Figure | None:
    """Watts, clock and energy a request over prompt length, below each other.

    ``rates``: of each case, by prompt length, the columns of ``POWER_PANELS``.
    """
    if not rates:
        return None
    traces, layout = [], {}
    for number, (column, title) in enumerate(POWER_PANELS.items(), start=1):
        suffix = "" if number == 1 else str(number)
        top = 1 - (number - 1) / 3
        layout[f"yaxis{suffix}"] = _AXIS | {
            "title": {"text": title},
            "domain": [top - 0.28, top],
            "rangemode": "tozero",
        }
        for case, frame in rates.items():
            values, look = frame[column].dropna(), look_of(case)
            traces.append(
                run.trace(
                    case,
                    x=list(values.index),
                    y=rounded(values),
                    yaxis=f"y{suffix}",
                    mode="lines+markers",
                    line={"color": look.color, "width": 2},
                    marker={"symbol": look.symbol, "size": 7, "color": look.color},
                    hovertemplate="%{x} tokens: %{y}",
                )
            )
    figure = _figure(traces, LENGTH_AXIS, "", height=720)
    figure["layout"] |= layout
    figure["layout"]["xaxis"] |= {"anchor": "y3"}
    return figure


def _figure(
    traces: Sequence[Trace],
    x: str,
    y: str,
    *,
    height: int,
    barmode: str = "group",
    log: bool = False,
    scales: bool = False,
    menu: dict[str, Any] | None = None,
) -> Figure:
    """``scales``: whether the reader chooses between a linear and a logarithmic axis; ``log``: which comes first."""
    menu = _menu(_SCALES, int(log), kind="buttons") if scales else menu
    layout = {
        "height": height,
        "font": _FONT,
        "paper_bgcolor": BACKGROUND,
        "plot_bgcolor": BACKGROUND,
        "margin": {"l": 10, "r": 10, "t": 50 if menu else 20, "b": 10},
        "hovermode": "closest",
        "barmode": barmode,
        "xaxis": _AXIS | {"title": {"text": x}},
        "yaxis": _AXIS | {"title": {"text": y}, "rangemode": "tozero"} | (_LOG if log else {"type": "linear"}),
        "updatemenus": [menu] if menu else [],
    }
    return {"data": list(traces), "layout": layout}


def _menu(buttons: Sequence[dict[str, Any]], active: int, *, kind: str = "dropdown") -> dict[str, Any]:
    return {
        "buttons": list(buttons),
        "type": kind,
        "direction": "right" if kind == "buttons" else "down",
        "active": active,
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "pad": {"t": 0, "b": 4},
        "font": {"size": 12},
    }


def _bar(case: Case, pattern: str) -> dict[str, Any]:
    color = look_of(case).color
    shape = {"shape": pattern, "fgcolor": color, "bgcolor": BACKGROUND, "solidity": 0.4} if pattern else {}
    return {"color": color, "pattern": shape, "line": {"color": color, "width": 1}}


def _transparent(color: str, opacity: float = 0.14) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def rounded(values: Sequence[float] | pd.Series[float]) -> list[float | None]:
    """The values as short as a reader can tell them apart; None for what is unknown."""
    return [float(f"{value:.{DIGITS}g}") if value == value else None for value in values]
