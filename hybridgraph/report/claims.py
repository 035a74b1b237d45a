"""What the study claims, what its own tables give, and what was measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from hybridgraph.cases import CASE1, CASE2, CASE3, CASE4, CASE4_FUSED, CASE5, PAPER_PROMPT_LENGTHS, Case
from hybridgraph.report.evidence import UNKNOWN, Evidence, Interval, ratio
from hybridgraph.report.study import METRICS, STUDY, figures
from hybridgraph.report.tables import WARM, Table

HYBRIDS = (CASE4, CASE4_FUSED)
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class SpeedupClaim:
    """ "JIT+CUDA is so many times faster than ``over``"."""

    over: Case
    metric: str  # "ttft" or "p99"
    claimed: float


SPEEDUP_CLAIMS = (
    SpeedupClaim(over=CASE1, metric="ttft", claimed=4.48),
    SpeedupClaim(over=CASE1, metric="p99", claimed=1.42),
    SpeedupClaim(over=CASE2, metric="ttft", claimed=5.17),
    SpeedupClaim(over=CASE2, metric="p99", claimed=1.23),
    SpeedupClaim(over=CASE3, metric="ttft", claimed=1.77),
    SpeedupClaim(over=CASE3, metric="p99", claimed=1.40),
    SpeedupClaim(over=CASE5, metric="ttft", claimed=1.75),
    SpeedupClaim(over=CASE5, metric="p99", claimed=1.36),
)
CLAIMED_WINS, CLAIMED_ROWS = 17, 18
LOWEST_UP_TO = 350  # tokens: CUDA Graph's P99
LOWEST_ROWS = sum(length <= LOWEST_UP_TO for length in PAPER_PROMPT_LENGTHS)


def study_speedup(claim: SpeedupClaim) -> float:
    """The claim's figure, from the averages of the study's own tables."""
    averages = figures(claim.metric).mean()
    return float(averages[claim.over.column] / averages[CASE4.column])


def study_wins(metric: str, case: Case = CASE4) -> int:
    """In how many rows of a table of the study ``case`` is lowest."""
    table = figures(metric)
    return int((table[case.column] == table.min(axis=1)).sum())


@dataclass(frozen=True)
class Finding:
    """What was measured of a claim with one of the hybrids in the study's place; ``figure`` is empty for nothing."""

    claim: str
    text: str  # what the study says
    tables: str  # what its own tables give
    hybrid: Case
    figure: str = ""
    verdict: str = ""  # "holds", "fails" or "open"; empty where it cannot be judged
    measured: float = math.nan
    interval: Interval = UNKNOWN

    def cell(self) -> str:
        return f"{self.figure} {self.verdict}".strip() or NOT_MEASURED


@dataclass(frozen=True)
class Wins:
    """In how many rows a case is lowest, alone or in a tie; ``absent`` are rivals that were not measured."""

    won: int
    rows: int
    absent: tuple[Case, ...] = ()
    tied: int = 0

    def told(self) -> str:
        ties = f"+{self.tied}" if self.tied else ""
        return f"{self.won}{ties} of {self.rows}" if self.rows else ""

    def verdict(self, claimed: int, rows: int) -> str:
        """Whether ``claimed`` of all ``rows`` were won: open where ties, or rivals not measured, could change it."""
        if self.rows != rows:
            return ""
        if self.won + self.tied < claimed:
            return "fails"
        return "open" if self.absent or self.won < claimed else "holds"


def count_wins(table: Table, case: Case, rivals: Sequence[Case], up_to: float = math.inf) -> Wins:
    """Over the rows that ``case`` and all measured rivals have; no rows where there is nothing to compare."""
    among = (case, *rivals)
    known = table.values[[c.column for c in among]].dropna(axis=1, how="all").dropna()
    absent = tuple(rival for rival in rivals if rival.column not in known)
    if case.column not in known or len(absent) == len(rivals):
        return Wins(0, 0)
    rows = [(length, row) for length, row in table.rows() if length in known.index and length <= up_to]
    least = [table.least(row, [length], among) for length, row in rows]
    lowest = [found for found in least if case in found]
    alone = sum(len(found) == 1 for found in lowest)
    return Wins(alone, len(rows), absent, len(lowest) - alone)


def rows_won(tables: Mapping[str, Table], hybrid: Case) -> Wins:
    """By the hybrid, of TTFT and of P99, against the study's other cases."""
    rivals = [case for case in STUDY if case != CASE4]
    ttft, p99 = (count_wins(tables[metric], hybrid, rivals) for metric in METRICS)
    absent = tuple(case for case in rivals if case in (*ttft.absent, *p99.absent))
    return Wins(ttft.won + p99.won, ttft.rows + p99.rows, absent, ttft.tied + p99.tied)


def cuda_graph_lowest(table: Table, hybrid: Case) -> Wins:
    """In how many rows CUDA Graph is lowest, against the study's other cases with this hybrid."""
    found = count_wins(table, CASE2, (CASE1, CASE3, hybrid, CASE5), up_to=LOWEST_UP_TO)
    return Wins(0, 0) if hybrid in found.absent else found


def absent_rivals(tables: Mapping[str, Table]) -> list[Case]:
    """The study's cases without which a count of wins stays open."""
    found = [rows_won(tables, hybrid) for hybrid in HYBRIDS] + [cuda_graph_lowest(tables["p99"], h) for h in HYBRIDS]
    return [case for case in STUDY if any(case in wins.absent for wins in found)]


def findings(tables: Mapping[str, Table], evidence: Evidence, *, judged: bool) -> list[Finding]:
    """What was measured of each claim, for both hybrids in turn.

    ``judged``: with a verdict, where all of the study's lengths were measured.
    """
    found = [
        _speedup(claim, tables[key], evidence, hybrid, judged=judged)
        for claim in SPEEDUP_CLAIMS
        # The study's TTFT includes cold and first-seen requests: the same without them as a claim of its own.
        for key in (("ttft", "warm_ttft") if claim.metric == "ttft" else ("p99",))
        for hybrid in HYBRIDS
    ]
    own = sum(map(study_wins, METRICS)), study_wins("p99", CASE2)
    for hybrid in HYBRIDS:
        wins = rows_won(tables, hybrid)
        told = Finding(f"rows won of {CLAIMED_ROWS}", f"{CLAIMED_WINS}", f"{own[0]}", hybrid)
        found.append(_counted(told, wins, CLAIMED_WINS, CLAIMED_ROWS, judged=judged))
    for hybrid in HYBRIDS:
        wins, all_rows = cuda_graph_lowest(tables["p99"], hybrid), f"{LOWEST_ROWS} of {LOWEST_ROWS}"
        told = Finding("P99 rows of CUDA Graph", all_rows, f"{own[1]} of {LOWEST_ROWS}", hybrid)
        found.append(_counted(told, wins, LOWEST_ROWS, LOWEST_ROWS, judged=judged))
    return found


def _counted(told: Finding, wins: Wins, claimed: int, rows: int, *, judged: bool) -> Finding:
    verdict = wins.verdict(claimed, rows) if judged else ""
    return replace(told, figure=wins.told(), verdict=verdict, measured=wins.won if wins.rows else math.nan)


def _speedup(claim: SpeedupClaim, table: Table, evidence: Evidence, hybrid: Case, *, judged: bool) -> Finding:
    """By the averages over the lengths that both cases have, whatever others have."""
    name = f"{claim.over.label}/hybrid, {'warm' if table.metric == WARM else claim.metric.upper()}"
    told = Finding(name, f"{claim.claimed:.2f} ×", f"{study_speedup(claim):.2f} ×", hybrid)
    shared = table.values[[claim.over.column, hybrid.column]].dropna()
    if shared.empty:
        return told
    lengths = [int(length) for length in shared.index]
    speedup = float(shared[claim.over.column].mean() / shared[hybrid.column].mean())
    one, other = (evidence.of(table.metric, case) for case in (claim.over, hybrid))
    interval = ratio(one, other, lengths, in_pairs=True)
    complete = set(PAPER_PROMPT_LENGTHS) <= set(lengths)
    figure = f"{speedup:.2f} ×" + ("" if complete else f" over {len(lengths)}")
    verdict = _judge(speedup, interval, claim.claimed) if judged and complete else ""
    return replace(told, figure=figure, verdict=verdict, measured=speedup, interval=interval)


def _judge(speedup: float, interval: Interval, claimed: float) -> str:
    """Whether a claim holds: open where the interval holds the claimed figure; without one, by the figure alone."""
    if interval.is_known and not interval.excludes(claimed):
        return "open"
    return "holds" if speedup >= claimed else "fails"


def claim_rows(found: Sequence[Finding]) -> list[list[str]]:
    """One line a claim: claim, in the study's text, by its tables, and measured for both hybrids."""
    by_claim: dict[str, list[Finding]] = {}
    for finding in found:
        by_claim.setdefault(finding.claim, []).append(finding)
    return [[name, of[0].text, of[0].tables, *(finding.cell() for finding in of)] for name, of in by_claim.items()]


def claims_frame(found: Sequence[Finding]) -> pd.DataFrame:
    """A row a claim and hybrid, as ``final_claims.csv`` has it."""
    return pd.DataFrame(
        {
            "claim": finding.claim,
            "hybrid": finding.hybrid.name,
            "text": finding.text,
            "tables": finding.tables,
            "measured": finding.measured,
            "told": finding.figure,
            "low": finding.interval.low,
            "high": finding.interval.high,
            "basis": finding.interval.basis,
            "verdict": finding.verdict or (NOT_MEASURED if math.isnan(finding.measured) else "not judged"),
        }
        for finding in found
    )
