"""What the figures of a run rest on: its samples, a value of each metric by launch, and how sure that makes it.

Where a case was started once, nothing tells how launches differ. What is used instead: the launch's quarters, in the
order of its requests, stand in for launches, and the interval of a ratio between them is made wider by ``ALLOWANCE``
on either side. What rests on quarters says so: its level is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from hybridgraph.bench.samples import Sample
from hybridgraph.bench.stats import percentile
from hybridgraph.bench.store import ResultFiles
from hybridgraph.cases import Case
from hybridgraph.report.load import Results
from hybridgraph.report.statistics import (
    mean_interval,
    paired_ratio_interval,
    percentile_bounds,
    ratio_interval,
    samples_needed,
)
from hybridgraph.report.tables import DECODE, METRICS, P99, TTFT, Alike, Metric, Table

Basis = Literal["launches", "quarters", "nothing"]
QUARTERS = 4
# The most that warm means of the same code, with its graphs, differed by at any length between two published runs on
# two H200s (6.6 %), rounded up. A case whose time is the host's differs by more.
ALLOWANCE = 0.07
NAN = math.nan


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``, over ``count`` units; NaN where they do not tell."""

    low: float
    high: float
    basis: Basis
    count: int

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside: False where the interval is unknown."""
        return self.high < value or value < self.low

    @property
    def is_known(self) -> bool:
        return not math.isnan(self.low)


UNKNOWN = Interval(NAN, NAN, "nothing", 0)


@dataclass(frozen=True)
class Units:
    """A metric of a case in ms: a row a launch, or a quarter of the only one; a column a prompt length."""

    values: pd.DataFrame
    basis: Basis

    def of(self, lengths: Sequence[int]) -> pd.Series[float]:
        """The average over ``lengths`` of each unit that has them all, by the unit's number."""
        if not all(length in self.values for length in lengths):
            return pd.Series(dtype=float)
        if len(lengths) == 1:  # most often, and much quicker
            return self.values[lengths[0]].dropna()
        return self.values[list(lengths)].dropna().mean(axis=1)

    def mean(self, lengths: Sequence[int]) -> Interval:
        """The interval of the mean over launches; unknown where there is only one."""
        values = self.of(lengths).to_numpy()
        low, high = mean_interval(values) if self.basis == "launches" else (NAN, NAN)
        return Interval(float(low), float(high), self.basis, len(values))


NO_UNITS = Units(pd.DataFrame(), "nothing")


def ratio(one: Units, other: Units, lengths: Sequence[int], *, in_pairs: bool) -> Interval:
    """How many times ``other`` the average over ``lengths`` is.

    ``in_pairs``: whether launches of one number followed each other, as those of two cases of one run do. Unknown
    where the two rest on different things.
    """
    values, reference = one.of(lengths), other.of(lengths)
    if one.basis != other.basis or one.basis == "nothing":
        return UNKNOWN
    if in_pairs and one.basis == "launches":
        shared = values.index.intersection(reference.index)
        low, high = paired_ratio_interval(values[shared].to_numpy(), reference[shared].to_numpy())
        return Interval(float(low), float(high), one.basis, len(shared))
    low, high = ratio_interval(values.to_numpy(), reference.to_numpy())
    wider = 1 + ALLOWANCE if one.basis == "quarters" else 1.0
    return Interval(float(low) / wider, float(high) * wider, one.basis, min(len(values), len(reference)))


@dataclass(frozen=True)
class TailBounds:
    """The bounds of a P99 at one length, each at the level; NaN where there is none."""

    lower: float
    upper: float
    samples: int

    def told(self) -> str:
        """The upper bound, or why there is none."""
        if math.isnan(self.upper):
            few = self.samples < (needed := samples_needed(99))
            why = f"{self.samples} of {needed} samples" if few else f"{self.samples} samples, slow ones in clusters"
            return f"no upper bound: {why}"
        return f"{self.upper:.2f}"


@dataclass(frozen=True)
class Evidence:
    """The samples behind a run's tables, by the case's name, and what each metric is by launch."""

    samples: dict[str, pd.DataFrame] = field(default_factory=dict)
    units: dict[str, dict[str, Units]] = field(default_factory=dict)  # metric's key → case's name

    def of(self, metric: Metric, case: Case) -> Units:
        """What ``metric`` of ``case`` rests on; no units where there are no samples."""
        return self.units.get(metric.key, {}).get(case.name, NO_UNITS)

    @property
    def launches(self) -> int:
        """The most launches of any case; 0 without samples."""
        return max((int(samples["launch"].nunique()) for samples in self.samples.values()), default=0)

    def alike(self, metric: Metric) -> Alike:
        """Whether two cases are a tie: the interval of their ratio is known, and holds 1."""

        @cache  # every table and claim asks again
        def are_alike(one: Case, other: Case, lengths: tuple[int, ...]) -> bool:
            found = ratio(self.of(metric, one), self.of(metric, other), lengths, in_pairs=True)
            return found.is_known and not found.excludes(1)

        return lambda one, other, lengths: one != other and are_alike(one, other, tuple(lengths))

    def told(self) -> str:
        """What the tables' ties rest on."""
        if self.launches > 1:
            return f"Marked together is a tie, by 95 % intervals over up to {self.launches} launches of each case."
        if self.launches == 1:
            return (
                "One launch of each case cannot tell how much launches differ. Marked together, as a tie, is what lies "
                f"within the drift between a launch's {QUARTERS} quarters and {100 * ALLOWANCE:.0f} %, which launches "
                "of one code have differed by."
            )
        return "How sure these figures are cannot be told: there are no samples beside them."

    def tail(self, case: Case, length: int) -> TailBounds | None:
        """The bounds of the P99 of ``case`` at ``length``, of requests as these launches had them."""
        samples = self.samples.get(case.name)
        if samples is None:
            return None
        found = samples[(samples["phase"] == "p99") & (samples["prompt_length"] == length)]["ttft_ms"].to_numpy(float)
        return TailBounds(*percentile_bounds(found, 99), len(found)) if len(found) else None


def gather(directory: Path, results: Results, cases: Sequence[Case]) -> Evidence:
    """The evidence of ``directory`` for those of ``cases`` whose samples are of the rows' run; raises UserError."""
    samples = {}
    for case in cases:
        rows = [tables[case.name] for tables in results.tables.values() if case.name in tables]
        found = ResultFiles(directory, case.name).read_samples() if rows else None
        if found is not None and all((table["run_id"] == found[0].run_id).all() for table in rows):
            samples[case.name] = as_frame(found[1])
    units = {metric.key: {name: units_of(frame, metric) for name, frame in samples.items()} for metric in METRICS}
    return Evidence(samples, units)


def as_frame(samples: Sequence[Sample]) -> pd.DataFrame:
    """A row a sample, in the order in which they were measured; ``itl_mean_ms`` is NaN for answers of one token."""
    return pd.DataFrame(
        {
            "launch": [s.launch for s in samples],
            "phase": [s.phase for s in samples],
            "prompt_length": [s.prompt_length for s in samples],
            "warmth": [s.warmth for s in samples],
            "ttft_ms": [s.ttft_ms for s in samples],
            "device_ms": np.array([s.device_ms for s in samples], dtype=float),
            "itl_mean_ms": [float(np.mean(s.itl_ms)) if s.itl_ms else NAN for s in samples],
        }
    )


def units_of(samples: pd.DataFrame, metric: Metric) -> Units:
    """The value of ``metric`` by launch and length, or by quarter where there was one launch."""
    chosen = samples[_behind(metric, samples)]
    column, of = "itl_mean_ms" if metric == DECODE else "ttft_ms", _p99 if metric == P99 else _mean
    if chosen["launch"].nunique() > 1:
        values = chosen.groupby(["launch", "prompt_length"])[column].agg(of).unstack("prompt_length")
        return Units(values, "launches")
    if metric == TTFT or chosen.empty:  # the first request of each length is another one than the rest
        return NO_UNITS
    quarters = {
        length: [of(part) for part in np.array_split(rows.to_numpy(), QUARTERS)]
        for length, rows in chosen.groupby("prompt_length")[column]
        if len(rows) >= QUARTERS
    }
    return Units(pd.DataFrame(quarters), "quarters")


def _behind(metric: Metric, samples: pd.DataFrame) -> pd.Series[bool]:
    """Which samples ``metric`` is computed from."""
    if metric in (TTFT, P99):
        return samples["phase"] == metric.kind
    return (samples["warmth"] == "warm") & ((samples["phase"] == "decode") == (metric == DECODE))


def _mean(values: Any) -> float:
    return float(np.mean(values))


def _p99(values: Any) -> float:
    return percentile(np.asarray(values).tolist(), 99)


def intervals_frame(tables: Iterable[Table], evidence: Evidence) -> pd.DataFrame:
    """How sure each figure of the tables is, a row each, as ``final_intervals.csv`` has it.

    A mean over the lengths that all cases share has an empty ``prompt_length``. The interval is of the mean over
    launches; ``at_least_ms`` and ``at_most_ms`` bound a P99 of requests as these launches had them.
    """
    rows = []
    for table in tables:
        for length, row in [*table.rows(), (None, table.averages)]:
            lengths = table.shared_lengths if length is None else [length]
            for case in table.measured:
                value = row.get(case.column, NAN)
                if not math.isnan(value):
                    rows.append(_interval_row(evidence, table.metric, case, length, lengths, value))
    return pd.DataFrame(rows)


def _interval_row(
    evidence: Evidence, metric: Metric, case: Case, length: int | None, lengths: Sequence[int], value: float
) -> dict[str, object]:
    interval = evidence.of(metric, case).mean(lengths)
    bounds = evidence.tail(case, length) if metric == P99 and length is not None else None
    return {
        "figure": metric.key,
        "case": case.name,
        "prompt_length": "" if length is None else length,
        "value_ms": value,
        "low_ms": interval.low,
        "high_ms": interval.high,
        "launches": interval.count if interval.basis == "launches" else min(evidence.launches, 1),
        "at_least_ms": bounds.lower if bounds else NAN,
        "at_most_ms": bounds.upper if bounds else NAN,
        "samples": bounds.samples if bounds else "",
        "note": bounds.told() if bounds and math.isnan(bounds.upper) else "",
    }
