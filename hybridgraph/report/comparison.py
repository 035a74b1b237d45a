"""Two runs or more beside each other: by case and length, what became faster or slower beyond the noise.

    python generate_final_tables.py --compare published/h200 output --fail-above 5

The first run is what each other one is compared with. Runs are refused where a difference would not be the code's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from hybridgraph.bench.samples import RunIdentity
from hybridgraph.cases import CASES, PEERS, Case
from hybridgraph.errors import UserError
from hybridgraph.report.evidence import ALLOWANCE, QUARTERS, Evidence, Interval, gather, ratio
from hybridgraph.report.grid import plain
from hybridgraph.report.load import Results, load_results
from hybridgraph.report.tables import AVERAGE, METRICS, Metric

Verdict = Literal["faster", "slower", "no difference", "cannot tell"]


@dataclass(frozen=True)
class Run:
    """One of the runs, by the name that it was given with."""

    name: str
    results: Results
    evidence: Evidence

    def value(self, metric: Metric, case: Case, lengths: Sequence[int]) -> float:
        """The average over ``lengths`` of what the run's tables show, in ms."""
        return float(self.results.tables[metric.kind][case.name][metric.column].loc[list(lengths)].mean())

    def lengths(self, metric: Metric, case: Case) -> set[int]:
        """At which the run has this metric of the case."""
        rows = self.results.tables[metric.kind].get(case.name)
        return set() if rows is None else {int(length) for length in rows[metric.column].dropna().index}

    def told(self) -> str:
        """What it is, in a line."""
        launches = self.evidence.launches
        count = {0: "no samples", 1: "1 launch"}.get(launches, f"{launches} launches")
        identity = self.results.identity
        return f"{self.name}: {identity['started'][:10]}, commit {identity['commit'] or 'unknown'}, {count}"


@dataclass(frozen=True)
class Change:
    """What became of a metric of a case at one length, or on average over those that both runs have."""

    metric: Metric
    case: Case
    length: int | None
    before_ms: float
    after_ms: float
    ratio: Interval

    @property
    def percent(self) -> float:
        """How much slower, in percent; negative where it became faster."""
        return 100 * (self.after_ms / self.before_ms - 1)

    @property
    def verdict(self) -> Verdict:
        if not self.ratio.is_known:
            return "cannot tell"
        if not self.ratio.excludes(1):
            return "no difference"
        return "slower" if self.ratio.low > 1 else "faster"

    def cell(self) -> str:
        """The change in percent, with a mark where it is beyond the noise, or where nobody can tell."""
        mark = {"faster": "*", "slower": "*", "cannot tell": "?"}.get(self.verdict, " ")
        return f"{self.percent:+.1f}{mark}"

    def told(self) -> str:
        """The change as a sentence, at most 80 characters wide."""
        where = "on average" if self.length is None else f"at {self.length}"
        low, high = (100 * (end - 1) for end in (self.ratio.low, self.ratio.high))
        return f"{self.case.label} {where}: {self.percent:+.1f} % ({low:+.1f} to {high:+.1f})"


@dataclass(frozen=True)
class Comparison:
    """What changed from one run to another; ``across`` says what else differs than the code."""

    before: Run
    after: Run
    across: str
    changes: Sequence[Change]

    def regressions(self, percent: float) -> list[Change]:
        """What is slower beyond the noise, and by more than ``percent``."""
        return [change for change in self.changes if change.verdict == "slower" and change.percent > percent]

    def heading(self) -> str:
        """Which runs, and what differs beside the code."""
        across = f", ACROSS {self.across}" if self.across else ""
        return f"Change from {self.before.name} to {self.after.name}{across}"

    def frame(self) -> pd.DataFrame:
        """A row a change, as ``final_comparison.csv`` has it; of an average the length is empty."""
        return pd.DataFrame(
            {
                "before": self.before.name,
                "after": self.after.name,
                "across": self.across,
                "figure": change.metric.key,
                "case": change.case.name,
                "prompt_length": "" if change.length is None else change.length,
                "before_ms": change.before_ms,
                "after_ms": change.after_ms,
                "change_percent": change.percent,
                "low_percent": 100 * (change.ratio.low - 1),
                "high_percent": 100 * (change.ratio.high - 1),
                "basis": change.ratio.basis,
                "units": change.ratio.count,
                "verdict": change.verdict,
            }
            for change in self.changes
        )


def open_run(name: str, directory: Path) -> Run:
    """The run in ``directory``, which was given as ``name``; raises UserError."""
    results = load_results(directory)
    return Run(name, results, gather(directory, results, (*CASES, *PEERS)))


def compare(before: Run, after: Run, *, across: bool) -> Comparison:
    """What changed; raises UserError for runs that differ in more than the code, unless ``across`` is given."""
    one, other = before.results.identity, after.results.identity
    differing = [column for column in RunIdentity.COMPARABLE if one[column] != other[column]]
    told = ", ".join(f"{column} {other[column]} instead of {one[column]}" for column in differing)
    if differing and not across:
        raise UserError(
            f"{after.name} cannot be compared with {before.name}: {told} (--across compares them all the same)"
        )
    changes = list(_changes(before, after))
    if not changes:
        raise UserError(f"{after.name} and {before.name} have no case with a length in common")
    return Comparison(before, after, told, changes)


def _changes(before: Run, after: Run) -> Iterator[Change]:
    for metric in METRICS:
        for case in (*CASES, *PEERS):
            shared = sorted(before.lengths(metric, case) & after.lengths(metric, case))
            for lengths in (shared, *([length] for length in shared)) if shared else ():
                found = ratio(
                    after.evidence.of(metric, case), before.evidence.of(metric, case), lengths, in_pairs=False
                )
                length = None if lengths is shared else lengths[0]
                before_ms, after_ms = (run.value(metric, case, lengths) for run in (before, after))
                yield Change(metric, case, length, before_ms, after_ms, found)


def as_text(comparison: Comparison) -> str:
    """The tables of a comparison for a terminal, 80 columns wide, and what is beyond the noise in words."""
    parts = ["\n".join([comparison.before.told(), comparison.after.told()])]
    for metric in METRICS:
        changes = [change for change in comparison.changes if change.metric == metric]
        if changes:
            parts += [f"{comparison.heading()}\n{metric.heading}, %", _grid(changes)]
    parts.append("\n".join(_rules(comparison.changes)))
    parts += [_listed(comparison, "slower"), _listed(comparison, "faster")]
    return "\n\n".join(part for part in parts if part)


def _grid(changes: Sequence[Change]) -> str:
    """A row a length, a column a case, the average last."""
    lengths = sorted({change.length for change in changes if change.length is not None})
    cells = {(change.case, change.length): change.cell() for change in changes}
    cases = list(dict.fromkeys(change.case for change in changes))
    rows = [[str(n or AVERAGE), *(cells.get((case, n), "") for case in cases)] for n in (*lengths, None)]
    return plain(["tokens", *(case.label for case in cases)], rows)


def _rules(changes: Sequence[Change]) -> list[str]:
    """What counts as noise, for the bases that there are."""
    bases = {change.ratio.basis for change in changes}
    rules = []
    if "launches" in bases:
        count = sum(change.ratio.basis == "launches" for change in changes)
        rules += [
            "* beyond the noise: the 95 % interval over launches leaves out no change.",
            f"  Of {count} comparisons, about {max(1, round(count / 20))} are marked by chance alone.",
        ]
    if "quarters" in bases:
        rules += [
            "* One launch each cannot tell how much launches differ. What is used instead:",
            f"  a change counts beyond the drift between the {QUARTERS} quarters of each launch and",
            f"  {100 * ALLOWANCE:.0f} %, which launches of one code have differed by. --launches 5 would tell.",
        ]
    if "nothing" in bases:
        rules.append("? nothing tells the noise: too few requests, one launch, or no samples.")
    return rules


def _listed(comparison: Comparison, verdict: Verdict) -> str:
    found = [change for change in comparison.changes if change.verdict == verdict]
    by_metric = {change.metric.heading: [c for c in found if c.metric == change.metric] for change in found}
    lines = [f"{heading}, {verdict}:\n" + "\n".join(f"  {c.told()}" for c in cs) for heading, cs in by_metric.items()]
    return "\n".join(lines)


def show(comparisons: Sequence[Comparison], fail_above: float | None, *, as_json: bool) -> int:
    """Print what changed; returns 1 where something became slower by more than ``fail_above`` percent, else 0."""
    regressions: list[Change] = []
    for comparison in comparisons:
        print(f"{as_text(comparison)}\n")
        regressions += comparison.regressions(fail_above) if fail_above is not None else []
    if fail_above is not None:
        count = len(regressions) or "no"
        print(f"{count} figures are slower by more than {fail_above:g} % beyond the noise")
    if as_json:
        rows = [row for c in comparisons for row in json.loads(c.frame().to_json(orient="records"))]
        print(json.dumps({"changes": rows, "regressions": len(regressions)}))
    return 1 if regressions else 0
