"""What a finished case prints: its rows for a person, and one JSON document for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hybridgraph.bench.rows import Row
from hybridgraph.bench.samples import COLUMNS, DECODE_COLUMNS, Phase, overflow_told, paths_taken, stopped_told
from hybridgraph.bench.store import ResultWriter
from hybridgraph.cases import Case
from hybridgraph.contract import GRAPH_PATHS

# What a terminal is wide enough for, followed by the graph paths.
SHOWN: dict[Phase, Sequence[str]] = {
    "ttft": ("prompt_length", "mean_ms", "first_seen_ms", "warm_mean_ms", "device_ms", "floor_ms", "floor_ratio"),
    "p99": ("prompt_length", "samples", "mean_ms", "p50_ms", "p99_ms", "max_ms"),
    "decode": DECODE_COLUMNS[:8],
}


def print_summary(case: Case, results: ResultWriter, stats: dict[str, Any], *, as_json: bool) -> None:
    """Print every table of a run to standard output; with ``as_json``, the same data as its last line."""
    identity = results.identity
    print(f"{case.title}: {identity.model}, {identity.dtype}, {identity.load_format} weights, {identity.device}")
    if identity.graph_backend == "emulated":
        print("graphs are EMULATED on this machine: these are not CUDA Graph results")
    for told in (
        overflow_told(sum(sample.overflowed is True for sample in results.samples)),
        stopped_told(sum(sample.stopped is True for sample in results.samples)),
    ):
        if told:
            print(told)
    document: dict[str, Any] = {"case": case.name, "stats": stats}
    for phase, rows in results.summaries().items():
        print(_as_text(SHOWN[phase], rows))
        document[phase] = [{column: row[column] for column in COLUMNS[phase]} for row in rows]
    if as_json:
        print(json.dumps(document))


def _as_text(columns: Sequence[str], rows: Sequence[Row]) -> str:
    cells = [list(columns)] + [[_cell(row[column]) for column in columns] for row in rows]
    if GRAPH_PATHS[0] in rows[0]:
        cells = [[*line, paths] for line, paths in zip(cells, ["paths", *map(paths_taken, rows)], strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
