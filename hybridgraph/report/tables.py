"""The final tables: one column a case, the winner of each row, and averages over the rows that all cases share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hybridgraph.cases import CASE1, Case
from hybridgraph.report.load import Results

AVERAGE = "AVERAGE"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of the result files that gets a table of its own."""

    key: str
    kind: str  # which file
    column: str  # which column there
    suffix: str  # of the table's columns
    heading: str


TTFT = Metric(key="ttft", kind="ttft", column="mean_ms", suffix="_ms", heading="TTFT, mean of the protocol's requests")
WARM = Metric(key="warm", kind="ttft", column="warm_mean_ms", suffix="_ms", heading="Warm TTFT, mean")
P99 = Metric(key="p99", kind="p99", column="p99_ms", suffix="_p99_ms", heading="P99 of TTFT")
DECODE = Metric(key="decode", kind="decode", column="itl_mean_ms", suffix="_itl_ms", heading="ITL, mean")


@dataclass(frozen=True)
class Table:
    """One metric over prompt lengths. ``values``: a column a case, NaN where it was not measured."""

    metric: Metric
    cases: Sequence[Case]
    values: pd.DataFrame
    fewest_samples: int | None = None  # behind any of its figures

    @property
    def measured(self) -> list[Case]:
        return [case for case in self.cases if self.values[case.column].notna().any()]

    @property
    def shared(self) -> pd.DataFrame:
        """The rows that every measured case has."""
        return self.values[[case.column for case in self.measured]].dropna()

    @property
    def averages(self) -> dict[str, float]:
        """Mean over the shared rows, by the case's column."""
        return {str(column): float(value) for column, value in self.shared.mean().items()} if len(self.shared) else {}

    def rules(self) -> list[str]:
        """What a reader must know of its figures: what a P99 is, and the averages' rows where those are not all."""
        rules = []
        if self.metric == P99 and self.fewest_samples:
            rank = self.fewest_samples - math.ceil(0.99 * self.fewest_samples) + 1
            named = {1: "the largest", 2: "the second largest"}.get(rank, f"number {rank} from the top")
            rules.append(f"By nearest rank: of {self.fewest_samples} requests a length, {named}.")
        if len(self.shared) < len(self.values):
            lengths = ", ".join(str(length) for length in self.shared.index) or "none"
            rules.append(f"{AVERAGE} is over the lengths that every measured case has: {lengths}.")
        return rules

    def winner(self, row: pd.Series[float]) -> str:
        """The case with the least time, or all that share it; empty where fewer than two were measured."""
        known = row.dropna()
        if len(known) < 2:
            return ""
        return " = ".join(case.title for case in self.cases if known.get(case.column) == known.min())

    def frame(self) -> pd.DataFrame:
        """The table as it is written: lengths, one column a case, the winner, and the averages last."""
        frame = self.values.copy()
        frame["winner"] = [self.winner(row) for _, row in self.values.iterrows()]
        averages = pd.Series(self.averages).reindex(self.values.columns)
        frame.loc[AVERAGE] = [*averages, self.winner(averages)]
        frame = frame.rename(columns={case.column: case.column + self.metric.suffix for case in self.cases})
        frame.index.name = "prompt_length"
        return frame.reset_index()

    def speedups(self) -> dict[str, float]:
        """How many times faster than the baseline each measured case is, from the averages."""
        averages = self.averages
        if CASE1.column not in averages:
            return {}
        return {case.title: averages[CASE1.column] / averages[case.column] for case in self.measured}


def build_table(results: Results, metric: Metric) -> Table:
    """The table of ``metric``; its lengths are those that any case measured."""
    cases = results.cases(metric.kind)
    tables = results.tables[metric.kind]
    columns = {c.column: tables[c.name][metric.column] if c.name in tables else pd.Series(dtype=float) for c in cases}
    values = pd.DataFrame(columns).astype(float).sort_index()
    values.index = values.index.astype(int)
    samples = [rows["samples"].min() for rows in tables.values() if "samples" in rows]
    return Table(metric, cases, values, int(min(samples)) if samples else None)
