"""Plots: time over prompt length, a line a case, the floor beneath them; and what changed between two runs.

Each is written as PNG and as SVG, by settings of its own whatever matplotlib's are here, and the same bytes each time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hybridgraph.cases import CASE4_FUSED
from hybridgraph.report.comparison import Change
from hybridgraph.report.drawing import Figure, FuncFormatter, LogLocator, NullFormatter, mpl
from hybridgraph.report.evidence import Evidence
from hybridgraph.report.lines import APART, AXES, LENGTH_AXIS, about_run, band_of, floor_of, growth_of
from hybridgraph.report.load import Results
from hybridgraph.report.palette import FLOOR, GRID, MUTED, TEXT, look_of
from hybridgraph.report.tables import Table
from hybridgraph.system.files import write_atomically

EMULATED = " (graphs EMULATED: not CUDA Graph results)"
MARKS = "full marks: beyond the noise; open ones: not, or nobody can tell; lines: the interval"
LABEL_GAP = 0.052  # of the axes' height, between two labels
_SETTINGS = {
    "svg.hashsalt": "hybridgraph",
    "font.family": "DejaVu Sans",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": MUTED,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "text.parse_math": False,
}
_LINE = {"linewidth": 1.6, "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.6}


@dataclass(frozen=True)
class Line:
    """One line of a plot and how it is drawn; ``band``: from and to, by prompt length."""

    name: str
    values: pd.Series[float]
    color: str
    marker: str = ""
    dashed: bool = False
    band: pd.DataFrame | None = None


def plot_table(table: Table, results: Results, evidence: Evidence, path: Path) -> None:
    """One metric; each line is named at its right end. Emulated graphs say so in the title."""
    lines = [
        Line(
            name=case.title,
            values=table.values[case.column].dropna(),
            color=look_of(case).color,
            marker=look_of(case).marker,
            band=band_of(evidence.samples.get(case.name), table.metric),
        )
        for case in table.measured
    ]
    if (found := floor_of(table, results)) is not None:
        lines.append(Line(f"floor ({found[0].title})", found[1], FLOOR, dashed=True))
    has_bands = any(line.band is not None for line in lines)
    about = [about_run(results.identity)] + ["band: 5th to 95th percentile of the requests"] * has_bands
    title = f"{table.metric.heading}{_emulated(results)}"
    with _plot(path, title, about, AXES[table.metric]) as axes:
        _draw(axes, lines)


def plot_growth(sweep: pd.DataFrame, path: Path) -> None:
    """Time and floor over a long range of prompt lengths: rows of one case."""
    about = about_run({str(column): str(value) for column, value in sweep.iloc[0].items()})
    (what, times), look = growth_of(sweep), look_of(CASE4_FUSED)
    lines = [
        Line(CASE4_FUSED.title, times, look.color, look.marker),
        Line("floor", sweep.set_index("prompt_length")["floor_ms"].dropna(), FLOOR, dashed=True),
    ]
    emulated = EMULATED if (sweep["graph_backend"] == "emulated").any() else ""
    with _plot(path, f"Prefill over prompt length{emulated}", [about], f"{what}, ms") as axes:
        _draw(axes, [line for line in lines if len(line.values)])


def plot_changes(heading: str, changes: Sequence[Change], path: Path) -> None:
    """What changed between two runs: a panel a metric, a mark a case and length with its interval."""
    metrics = list(dict.fromkeys(change.metric for change in changes))
    with _figure(path, heading, (8.4, 1.0 + 2.6 * len(metrics))) as figure:
        panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
        for panel, metric in zip(panels, metrics, strict=True):
            _draw_changes(panel, [change for change in changes if change.metric == metric])
            _dress(panel, [*([MARKS] if metric == metrics[0] else []), metric.heading], "change, %")
        panels[-1].set_xlabel(LENGTH_AXIS)
        handles = {
            text: handle for panel in panels for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5
        )


def _draw_changes(axes: Any, changes: Sequence[Change]) -> None:
    lengths = sorted({change.length for change in changes if change.length is not None})
    places: dict[int | None, int] = {length: place for place, length in enumerate([*lengths, None])}
    cases = list(dict.fromkeys(change.case for change in changes))
    axes.axhline(0, color=FLOOR, linewidth=0.8)
    for number, case in enumerate(cases):
        look = look_of(case)
        for change in changes:
            if change.case == case:
                x = places[change.length] + 0.7 * (number + 0.5) / len(cases) - 0.35
                ends = [100 * (end - 1) for end in (change.ratio.low, change.ratio.high)]
                axes.plot([x, x], ends, color=look.color, linewidth=1)
                filled = look.color if change.verdict in ("faster", "slower") else "white"
                label = case.title if change.length is None else None
                axes.plot(x, change.percent, look.marker, color=look.color, markerfacecolor=filled, label=label)
    axes.set_xticks(list(places.values()), [str(length or "mean") for length in places])


def _emulated(results: Results) -> str:
    return EMULATED if results.is_emulated else ""


@contextmanager
def _plot(path: Path, title: str, about: Sequence[str], axis: str) -> Iterator[Any]:
    """The axes to draw on; the figure is written when the block ends, as ``path`` and as SVG beside it."""
    with _figure(path, title, (8.4, 4.8 + 0.15 * len(about))) as figure:
        axes = figure.add_subplot()
        _dress(axes, about, axis)
        axes.set_xlabel(LENGTH_AXIS)
        yield axes


@contextmanager
def _figure(path: Path, title: str, size: tuple[float, float]) -> Iterator[Any]:
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in another script, for instance, that the font has no glyphs for
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        yield figure
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: both files are of the same figure
        for target, metadata in ((path, {"Software": None}), (path.with_suffix(".svg"), {"Date": None})):
            image = BytesIO()
            figure.savefig(image, format=target.suffix[1:], metadata=metadata)
            write_atomically(target, image.getvalue())


def _dress(axes: Any, about: Sequence[str], axis: str) -> None:
    axes.set_title("\n".join(about), loc="left", fontsize=8, color=MUTED)
    axes.set_ylabel(axis)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw(axes: Any, lines: Sequence[Line]) -> None:
    for line in lines:
        style = "--" if line.dashed else "-"
        axes.plot(line.values.index, line.values, style, marker=line.marker, color=line.color, **_LINE)
        if line.band is not None:
            low, high = (line.band[column] for column in line.band)
            axes.fill_between(line.band.index, low, high, color=line.color, alpha=0.16, linewidth=0)
    _scale(axes, lines)
    _label_ends(axes, lines)


def _scale(axes: Any, lines: Sequence[Line]) -> None:
    """Logarithmic where the lines lie far apart, so that the lower ones can be read; from zero otherwise."""
    lowest = [line.values.min() for line in lines]
    if max(lowest) < APART * min(lowest):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"{axes.get_ylabel()} (logarithmic)")


def _label_ends(axes: Any, lines: Sequence[Line]) -> None:
    """Write name and last value right of each line's end, pushed apart where they would overlap.

    A thin line leads from an end to its label.
    """
    to_height = axes.transAxes.inverted()
    right = max(float(line.values.index[-1]) for line in lines)
    ends = [(float(line.values.index[-1]), float(line.values.iloc[-1])) for line in lines]
    heights = [float(to_height.transform(axes.transData.transform(end))[1]) for end in ends]
    leader = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
    for line, end, height in zip(lines, ends, spread(heights, LABEL_GAP), strict=True):
        to = {"xytext": (1.016, height), "textcoords": "axes fraction", "annotation_clip": False}
        axes.annotate("", end, arrowprops=leader | {"color": line.color}, **to)
        beside = {"transform": axes.transAxes, "clip_on": False}
        axes.plot(1.026, height, line.marker or "_", color=line.color, **beside, **_LINE)
        axes.text(1.038, height, f"{line.name}  {end[1]:.1f}", color=TEXT, fontsize=8.5, va="center", **beside)
    axes.set_xlim(right=right)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved as little as keeps each ``gap`` from the next, in their order.

    Neighbours that are too close form a group around the mean of its members.
    """
    order = np.argsort(heights, kind="stable")
    groups: list[list[float]] = []  # of each the members' heights, lowest group first
    for index in order:
        groups.append([heights[index]])
        while len(groups) > 1 and _lowest(groups[-1], gap) - _highest(groups[-2], gap) < gap:
            top = groups.pop()
            groups[-1] += top
    placed = [_lowest(group, gap) + i * gap for group in groups for i in range(len(group))]
    return [height for _, height in sorted(zip(order, placed, strict=True))]


def _lowest(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _highest(group: Sequence[float], gap: float) -> float:
    return _lowest(group, gap) + gap * (len(group) - 1)
