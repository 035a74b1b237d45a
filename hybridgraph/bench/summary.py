"""What a finished case prints: its rows for a person, and one JSON document for a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hybridgraph.bench.rows import Row
from hybridgraph.bench.samples import COLUMNS, Phase, overflow_told, paths_taken, stopped_told
from hybridgraph.bench.store import ResultWriter
from hybridgraph.cases import Case
from hybridgraph.contract import GRAPH_PATHS

# The columns that 80 characters have room for, and what they are called there; times are in ms.
SHOWN: dict[Phase, dict[str, str]] = {
    "ttft": {
        "prompt_length": "tokens",
        "mean_ms": "TTFT mean",
        "first_seen_ms": "first seen",
        "warm_mean_ms": "warm",
        "device_ms": "device",
        "floor_ms": "floor",
        "floor_ratio": "× floor",
    },
    "p99": {
        "prompt_length": "tokens",
        "samples": "samples",
        "mean_ms": "TTFT mean",
        "p50_ms": "P50",
        "p99_ms": "P99",
        "max_ms": "largest",
    },
    "decode": {
        "prompt_length": "tokens",
        "new_tokens": "new",
        "itl_mean_ms": "ITL mean",
        "itl_p50_ms": "P50",
        "itl_p99_ms": "P99",
        "tokens_per_s": "tokens/s",
        "gb_per_s": "GB/s",
        "floor_ms": "floor",
    },
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


def _as_text(shown: Mapping[str, str], rows: Sequence[Row]) -> str:
    lines = [list(shown.values())] + [[_cell(row[column]) for column in shown] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    if GRAPH_PATHS[0] in rows[0]:
        text.append(f"graphs: {paths_taken({path: sum(row[path] for row in rows) for path in GRAPH_PATHS})}")
    return "\n".join(text)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
