"""Plots: time over prompt length, a line a case, the floor beneath them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from hybridgraph.cases import CASES, PEERS, Case
from hybridgraph.report.load import Results
from hybridgraph.report.tables import Table

_COLORS = dict(zip((case.name for case in (*CASES, *PEERS)), mpl.color_sequences["tab10"], strict=False))
_FLOOR = "#777777"


def plot_table(table: Table, results: Results, path: Path) -> None:
    """One metric; each line is named at its right end. Emulated graphs say so in the title."""
    figure, axes = _canvas(f"{table.metric.heading}{_emulated(results)}", _subtitle(results))
    ends: list[tuple[float, str, Any]] = []
    for case in table.measured:
        line = table.values[case.column].dropna()
        axes.plot(line.index, line, marker="o", markersize=3.5, linewidth=1.6, color=_color(case))
        ends.append((float(line.iloc[-1]), case.title, _color(case)))
    if (found := floor_of(table, results)) is not None:
        case, floor = found
        axes.plot(floor.index, floor, linestyle="--", linewidth=1.2, color=_FLOOR)
        ends.append((float(floor.iloc[-1]), f"floor ({case.title})", _FLOOR))
    axes.set_ylim(bottom=0)
    _label_ends(axes, float(max(table.values.index)), ends)
    _save(figure, path)


def plot_growth(sweep: pd.DataFrame, path: Path) -> None:
    """Device time and floor over a long range of prompt lengths: rows of one case."""
    about = ", ".join(str(sweep[column].iloc[0]) for column in ("model", "dtype", "device", "load_format"))
    figure, axes = _canvas("Prefill over prompt length: device time and floor", about)
    last = float(sweep["prompt_length"].iloc[-1])
    ends: list[tuple[float, str, Any]] = []
    for column, color, style, label in (
        ("device_ms", "tab:blue", "-", "JIT+CUDA fused"),
        ("floor_ms", _FLOOR, "--", "floor"),
    ):
        axes.plot(sweep["prompt_length"], sweep[column], style, marker="o", markersize=3, color=color)
        ends.append((float(sweep[column].iloc[-1]), label, color))
    axes.set_ylim(bottom=0)
    _label_ends(axes, last, ends)
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


def _label_ends(axes: Any, last: float, ends: list[tuple[float, str, Any]]) -> None:
    """Names beside the lines' ends, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, at = (high - low) * 0.045, -float("inf")
    for value, label, color in sorted(ends, key=lambda end: end[0]):
        at = max(value, at + gap)
        axes.annotate(
            f"{label}  {value:.1f}",
            (last, value),
            xytext=(last * 1.02, at),
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


def _subtitle(results: Results) -> str:
    identity = results.identity
    return ", ".join(identity[key] for key in ("model", "dtype", "device", "protocol")) + (
        f", {identity['load_format']} weights"
    )


def _emulated(results: Results) -> str:
    return " (graphs EMULATED: not CUDA Graph results)" if results.is_emulated else ""


def _color(case: Case) -> Any:
    return _COLORS.get(case.name, "black")


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
