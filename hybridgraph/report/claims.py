"""What the study claims, what its own tables give, and what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from hybridgraph.cases import CASE1, CASE2, CASE3, CASE4, CASE4_FUSED, CASE5, PAPER_PROMPT_LENGTHS, Case
from hybridgraph.report.study import METRICS, STUDY, figures
from hybridgraph.report.tables import Table

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


def verdict(figure: str, *, holds: bool, judged: bool) -> str:
    """``figure``, and whether its claim holds where that can be ``judged`` by it."""
    return f"{figure} {'holds' if holds else 'fails'}" if judged else figure


@dataclass(frozen=True)
class Wins:
    """In how many rows a case is lowest, and which of its rivals were not measured and so could not win any."""

    won: int
    rows: int
    absent: tuple[Case, ...] = ()

    def verdict(self, claimed: int, rows: int, *, judged: bool) -> str:
        """Whether ``claimed`` of all ``rows`` were won: open where rivals that were not measured could change it."""
        if not self.rows:
            return NOT_MEASURED
        told, judged = f"{self.won} of {self.rows}", judged and self.rows == rows
        if judged and self.absent and self.won >= claimed:
            return f"{told} open"
        return verdict(told, holds=self.won >= claimed, judged=judged)


def count_wins(values: pd.DataFrame, case: Case, rivals: Sequence[Case]) -> Wins:
    """Over the rows that ``case`` and all measured rivals have; no rows where there is nothing to compare."""
    known = values[[c.column for c in (case, *rivals)]].dropna(axis=1, how="all").dropna()
    absent = tuple(rival for rival in rivals if rival.column not in known)
    if case.column not in known or len(absent) == len(rivals):
        return Wins(0, 0)
    return Wins(int((known[case.column] == known.min(axis=1)).sum()), len(known), absent)


def rows_won(tables: Mapping[str, Table], hybrid: Case) -> Wins:
    """By the hybrid, of TTFT and of P99, against the study's other cases."""
    rivals = [case for case in STUDY if case != CASE4]
    ttft, p99 = (count_wins(tables[metric].values, hybrid, rivals) for metric in METRICS)
    return Wins(ttft.won + p99.won, ttft.rows + p99.rows, tuple(c for c in rivals if c in (*ttft.absent, *p99.absent)))


def cuda_graph_lowest(table: Table, hybrid: Case) -> Wins:
    """In how many rows CUDA Graph is lowest, against the study's other cases with this hybrid."""
    found = count_wins(table.values[table.values.index <= LOWEST_UP_TO], CASE2, (CASE1, CASE3, hybrid, CASE5))
    return Wins(0, 0) if hybrid in found.absent else found


def absent_rivals(tables: Mapping[str, Table]) -> list[Case]:
    """The study's cases without which a count of wins stays open."""
    found = [rows_won(tables, hybrid) for hybrid in HYBRIDS] + [cuda_graph_lowest(tables["p99"], h) for h in HYBRIDS]
    return [case for case in STUDY if any(case in wins.absent for wins in found)]


def claim_rows(tables: Mapping[str, Table], *, judged: bool) -> list[list[str]]:
    """One line a claim: claim, in the study's text, by its tables, and measured for both hybrids.

    ``judged``: with a verdict, where all of the study's lengths were measured.
    """
    rows = []
    for claim in SPEEDUP_CLAIMS:
        told = [f"{claim.claimed:.2f} ×", f"{study_speedup(claim):.2f} ×"]
        # The study's TTFT includes cold and first-seen requests: the same without them in a line of its own.
        for key in ("ttft", "warm_ttft") if claim.metric == "ttft" else ("p99",):
            name = f"{claim.over.label} / hybrid, {'warm' if key == 'warm_ttft' else key.upper()}"
            rows.append([name, *told, *(measured_speedup(claim, tables[key], h, judged=judged) for h in HYBRIDS)])
    wins = [rows_won(tables, h).verdict(CLAIMED_WINS, CLAIMED_ROWS, judged=judged) for h in HYBRIDS]
    lowest = [cuda_graph_lowest(tables["p99"], h).verdict(LOWEST_ROWS, LOWEST_ROWS, judged=judged) for h in HYBRIDS]
    return [
        *rows,
        [f"rows won of {CLAIMED_ROWS}", f"{CLAIMED_WINS}", f"{sum(map(study_wins, METRICS))}", *wins],
        [
            "P99 rows of CUDA Graph",
            f"{LOWEST_ROWS} of {LOWEST_ROWS}",
            f"{study_wins('p99', CASE2)} of {LOWEST_ROWS}",
            *lowest,
        ],
    ]


def measured_speedup(claim: SpeedupClaim, table: Table, hybrid: Case, *, judged: bool) -> str:
    """By the averages over the lengths that both cases have, whatever others have."""
    shared = table.values[[claim.over.column, hybrid.column]].dropna()
    if shared.empty:
        return NOT_MEASURED
    speedup = float(shared[claim.over.column].mean() / shared[hybrid.column].mean())
    complete = set(PAPER_PROMPT_LENGTHS) <= set(shared.index)
    over = "" if complete else f" over {len(shared)}"
    return verdict(f"{speedup:.2f} ×{over}", holds=speedup >= claim.claimed, judged=judged and complete)
