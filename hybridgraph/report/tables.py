"""The final tables: one column a case, the winner of each row, and averages over the rows that all cases share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from hybridgraph.cases import CASE1, Case
from hybridgraph.report.load import EMULATED_MARK, Results

AVERAGE, GAIN = "mean", "gain"  # the last rows, as a person reads them


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of the result files that gets a table of its own."""

    key: str  # its files are called final_KEY…
    kind: str  # which result file it is in
    column: str  # which column there
    suffix: str  # of the table's columns
    heading: str


WARM = Metric(key="warm_ttft", kind="ttft", column="warm_mean_ms", suffix="_warm_ms", heading="Warm TTFT, mean")
TTFT = Metric(key="ttft", kind="ttft", column="mean_ms", suffix="_ms", heading="TTFT, mean of the protocol's requests")
P99 = Metric(key="p99", kind="p99", column="p99_ms", suffix="_p99_ms", heading="P99 of TTFT")
DECODE = Metric(key="decode", kind="decode", column="itl_mean_ms", suffix="_itl_ms", heading="ITL, mean")
METRICS = (WARM, TTFT, P99, DECODE)

# Whether two cases are no different beyond the noise, on average over the lengths.
Alike = Callable[[Case, Case, Sequence[int]], bool]


def never_alike(one: Case, other: Case, lengths: Sequence[int]) -> bool:
    """Where nothing is known of the noise, the lower figure counts."""
    return False


@dataclass(frozen=True)
class Table:
    """One metric over prompt lengths. ``values``: a column a case, NaN where it was not measured."""

    metric: Metric
    cases: Sequence[Case]
    values: pd.DataFrame
    fewest_samples: int | None = None  # behind any of its figures
    is_emulated: bool = False  # whether any of its rows was served by emulated graphs
    alike: Alike = never_alike

    @property
    def measured(self) -> list[Case]:
        return [case for case in self.cases if self.values[case.column].notna().any()]

    @property
    def shared(self) -> pd.DataFrame:
        """The rows that every measured case has."""
        return self.values[[case.column for case in self.measured]].dropna()

    @property
    def shared_lengths(self) -> list[int]:
        return [int(length) for length in self.shared.index]

    @property
    def averages(self) -> dict[str, float]:
        """Mean over the shared rows, by the case's column."""
        return {str(column): float(value) for column, value in self.shared.mean().items()} if len(self.shared) else {}

    @property
    def speedups(self) -> dict[str, float]:
        """How many times as fast as the baseline each measured case is, from the averages, by the case's column."""
        averages = self.averages
        if CASE1.column not in averages:
            return {}
        return {column: averages[CASE1.column] / average for column, average in averages.items()}

    def rules(self) -> list[str]:
        """What a reader must know of its figures."""
        rules = []
        if self.is_emulated:
            rules.append(
                f"{EMULATED_MARK} Graphs are emulated here: a replay calls the captured function again. "
                "These are no CUDA Graph results, and no case wins."
            )
        if self.metric == P99 and self.fewest_samples:
            rank = self.fewest_samples - math.ceil(0.99 * self.fewest_samples) + 1
            named = {1: "the largest", 2: "the second largest"}.get(rank, f"number {rank} from the top")
            rules.append(f"By nearest rank: of {self.fewest_samples} requests a length, {named}.")
        if len(self.shared) < len(self.values):
            lengths = ", ".join(str(length) for length in self.shared.index) or "none"
            rules.append(f"The mean is over the lengths that every measured case has: {lengths}.")
        return rules

    def least(self, row: Mapping[str, float], lengths: Sequence[int], among: Sequence[Case]) -> list[Case]:
        """Those of ``among`` with the least time in ``row``, or no different from it; ``row`` is over ``lengths``."""
        known = {case: row[case.column] for case in among if not math.isnan(row.get(case.column, math.nan))}
        if not known:
            return []
        lowest = min(known, key=lambda case: known[case])
        return [c for c, value in known.items() if value == known[lowest] or self.alike(c, lowest, lengths)]

    def winners(self, row: Mapping[str, float], lengths: Sequence[int]) -> list[Case]:
        """The same of all; none where fewer than two were measured, or where graphs are emulated."""
        measured = [case for case in self.cases if not math.isnan(row.get(case.column, math.nan))]
        return [] if len(measured) < 2 or self.is_emulated else self.least(row, lengths, measured)

    def named_winners(self, row: Mapping[str, float], lengths: Sequence[int]) -> str:
        """The same as text, for a cell: of a tie all names."""
        return " = ".join(case.title for case in self.winners(row, lengths))

    def frame(self) -> pd.DataFrame:
        """The table as it is written: lengths, one column a case, the winner."""
        frame = self.values.copy()
        frame["winner"] = [self.named_winners(row, [length]) for length, row in self.rows()]
        frame = frame.rename(columns={case.column: case.column + self.metric.suffix for case in self.cases})
        frame.index.name = "prompt_length"
        return frame.reset_index()

    def text(self, *, winner: str, other: str = "{}") -> tuple[list[str], list[list[str]]]:
        """Heading and rows as a person reads them: a row a length, then averages and what they gain on the baseline.

        ``winner`` and ``other`` are what a cell is written as: formats of its text.
        """

        def cells(row: Mapping[str, float], lengths: Sequence[int]) -> list[str]:
            winners = self.winners(row, lengths)
            shown = {case: figure(row.get(case.column)) for case in self.cases}
            return [(winner if case in winners else other).format(cell) for case, cell in shown.items()]

        lines = [[str(length), *cells(row, [length])] for length, row in self.rows()]
        if averages := self.averages:
            lines.append([AVERAGE, *cells(averages, self.shared_lengths)])
        if (speedups := self.speedups) and not self.is_emulated:
            lines.append([GAIN, *(figure(speedups.get(case.column), " ×") for case in self.cases)])
        return ["tokens", *(case.label for case in self.cases)], lines

    def rows(self) -> list[tuple[int, dict[str, float]]]:
        """Each length and its times, by the cases' columns."""
        columns = [str(column) for column in self.values.columns]
        rows = (dict(zip(columns, row, strict=True)) for row in self.values.to_numpy().tolist())
        return list(zip(map(int, self.values.index), rows, strict=True))


def figure(value: object, unit: str = "") -> str:
    """A cell with two decimals; empty where nothing is known."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}{unit}"
    return "" if value is None else f"{value}{unit}"


def build_table(results: Results, metric: Metric, alike: Alike = never_alike) -> Table:
    """The table of ``metric``; its lengths are those that any case measured."""
    cases = results.cases(metric.kind)
    tables = results.tables[metric.kind]
    columns = {c.column: tables[c.name][metric.column] if c.name in tables else pd.Series(dtype=float) for c in cases}
    values = pd.DataFrame(columns).astype(float).sort_index()
    values.index = values.index.astype(int)
    samples = [rows["samples"].min() for rows in tables.values() if "samples" in rows]
    fewest = int(min(samples)) if samples else None
    return Table(metric, cases, values, fewest, results.has_emulated(metric.kind), alike)


def averages_frame(tables: Sequence[Table]) -> pd.DataFrame:
    """The averages of all tables, a row each: which figure, over how many lengths, one column a case, the winner."""
    rows = []
    for table in tables:
        if averages := table.averages:
            columns = {f"{case.column}_ms": averages.get(case.column, math.nan) for case in table.cases}
            told = {"figure": table.metric.key, "lengths": len(table.shared)}
            rows.append(told | columns | {"winner": table.named_winners(averages, table.shared_lengths)})
    return pd.DataFrame(rows)
