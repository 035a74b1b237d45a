"""What the plots and the page's charts draw alike: lines, bands and floors over prompt length, and how axes are called.

It needs no library that draws.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hybridgraph.cases import Case
from hybridgraph.report.load import Results
from hybridgraph.report.tables import DECODE, P99, TTFT, WARM, Metric, Table

AXES = {
    TTFT: "protocol TTFT, mean, ms",
    WARM: "warm TTFT, mean, ms",
    P99: "P99 of TTFT, ms",
    DECODE: "ITL, mean, ms",
}
LENGTH_AXIS = "prompt length, tokens"
BAND = (5, 95)  # percentiles of the requests behind a line
APART = 4  # from how many times the lowest line on an axis is logarithmic


def band_of(samples: pd.DataFrame | None, metric: Metric) -> pd.DataFrame | None:
    """The ends of ``BAND`` by prompt length, of the requests behind a warm mean, a P99 or an ITL; None without any."""
    if samples is None or metric == TTFT:
        return None
    decoding = samples["phase"] == "decode"
    chosen = samples[(samples["warmth"] == "warm") & (decoding if metric == DECODE else ~decoding)]
    if chosen.empty:
        return None
    column = "itl_mean_ms" if metric == DECODE else "ttft_ms"
    return chosen.groupby("prompt_length")[column].quantile([q / 100 for q in BAND]).unstack()


def floor_of(table: Table, results: Results) -> tuple[Case, pd.Series[float]] | None:
    """The floor by the rates that one run measured, and whose that was: of those measured, the last one that knows."""
    rows_of = results.tables["ttft" if table.metric.kind == "p99" else table.metric.kind]
    for case in reversed(table.measured):
        rows = rows_of.get(case.name)
        if rows is not None and rows["floor_ms"].notna().any():
            return case, rows["floor_ms"].dropna().sort_index()
    return None


def growth_of(sweep: pd.DataFrame) -> tuple[str, pd.Series[float]]:
    """What a run over many lengths knows of its growth: the time on the device or, without one, at the client."""
    rows = sweep.set_index("prompt_length")
    on_device = rows["device_ms"].dropna()
    return ("time on the device", on_device) if len(on_device) else ("warm TTFT", rows["warm_mean_ms"].dropna())


def about_run(identity: Mapping[str, str]) -> str:
    """What was measured, on what, how."""
    i = identity
    return f"{i['model']}, {i['dtype']}, {i['load_format']} weights, {i['device']}, protocol: {i['protocol']}"
