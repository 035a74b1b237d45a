"""Plots: time over prompt length, a line a case, the floor beneath them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from hybridgraph.cases import CASES, PEERS, Case
from hybridgraph.report.load import Results
from hybridgraph.report.tables import Table

_PALETTE = (*mpl.color_sequences["tab10"], *mpl.color_sequences["Set2"])
_COLORS = dict(zip((case.name for case in (*CASES, *PEERS)), _PALETTE, strict=False))
_FLOOR = "#222222"


def plot_table(table: Table, results: Results, path: Path) -> None:
    """One metric; each line is named at its right end. Emulated graphs say so in the title."""
    figure, axes = _canvas(f"{table.metric.heading}{_emulated(results)}", _about(results.identity))
    lines = [(table.values[case.column].dropna(), case.title, _COLORS[case.name]) for case in table.measured]
    for line, _, color in lines:
        axes.plot(line.index, line, marker="o", markersize=3.5, linewidth=1.6, color=color)
    if (found := floor_of(table, results)) is not None:
        case, floor = found
        axes.plot(floor.index, floor, linestyle="--", linewidth=1.2, color=_FLOOR)
        lines.append((floor, f"floor ({case.title})", _FLOOR))
    axes.set_ylim(bottom=0)
    _label_ends(axes, lines)
    _save(figure, path)


def plot_growth(sweep: pd.DataFrame, path: Path) -> None:
    """Device time and floor over a long range of prompt lengths: rows of one case."""
    about = _about({str(column): str(value) for column, value in sweep.iloc[0].items()})
    figure, axes = _canvas("Prefill over prompt length: device time and floor", about)
    rows = sweep.set_index("prompt_length")
    lines = [(rows["device_ms"], "JIT+CUDA fused", "tab:blue"), (rows["floor_ms"], "floor", _FLOOR)]
    for (line, _, color), style in zip(lines, ("-", "--"), strict=True):
        axes.plot(line.index, line, style, marker="o", markersize=3, color=color)
    axes.set_ylim(bottom=0)
    _label_ends(axes, lines)
    _save(figure, path)


def _canvas(title: str, subtitle: str) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(8.4, 4.8), dpi=130)
    axes.set_title(title, loc="left", fontsize=11, pad=18, parse_math=False)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=7.5, color="#555555", parse_math=False)
    axes.set_xlabel("prompt length, tokens")
    axes.set_ylabel("ms")
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label_ends(axes: Any, lines: Sequence[tuple[pd.Series[float], str, Any]]) -> None:
    """Write name and last value at the ends of ``(line, name, color)``, pushed apart where they would overlap.

    A line that ends before the others is named above its end.
    """
    low, high = axes.get_ylim()
    last = float(max(line.index[-1] for line, _, _ in lines))
    gap, labels = (high - low) * 0.045, dict[float, float]()  # where the last one stands, at each end
    for line, label, color in sorted(lines, key=lambda line: float(line[0].iloc[-1])):
        end, value = float(line.index[-1]), float(line.iloc[-1])
        labels[end] = max(value if end == last else value + gap, labels.get(end, -gap) + gap)
        axes.annotate(
            f"{label}  {value:.1f}",
            (end, value),
            xytext=(end * 1.02 if end == last else end, labels[end]),
            textcoords="data",
            color=color,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )


def floor_of(table: Table, results: Results) -> tuple[Case, pd.Series[float]] | None:
    """The floor by the rates that one run measured, and whose that was: of those measured, the last one that knows."""
    rows_of = results.tables["ttft" if table.metric.kind == "p99" else table.metric.kind]
    for case in reversed(table.measured):
        rows = rows_of.get(case.name)
        if rows is not None and rows["floor_ms"].notna().any():
            return case, rows["floor_ms"].dropna().sort_index()
    return None


def _about(identity: Mapping[str, str]) -> str:
    """What was measured, on what, how."""
    i = identity
    return f"{i['model']}, {i['dtype']}, {i['load_format']} weights, {i['device']}, protocol: {i['protocol']}"


def _emulated(results: Results) -> str:
    return " (graphs EMULATED: not CUDA Graph results)" if results.is_emulated else ""


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
