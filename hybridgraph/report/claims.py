"""What the published study claims, what its own tables give, and what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hybridgraph.cases import CASE1, CASE2, CASE3, CASE4, CASE4_FUSED, CASE5, PAPER_PROMPT_LENGTHS, Case
from hybridgraph.report.tables import Table

STUDY = (CASE1, CASE2, CASE3, CASE4, CASE5)
HYBRIDS = (CASE4, CASE4_FUSED)

# The published tables, milliseconds, a row a prompt length, columns as in STUDY.
PUBLISHED_TTFT = (
    (88.09, 20.77, 178.96, 24.84, 35.91),
    (19.60, 145.66, 51.56, 9.70, 19.71),
    (19.53, 120.36, 56.27, 10.62, 19.59),
    (19.59, 119.58, 57.94, 11.33, 19.95),
    (19.13, 125.89, 61.07, 13.08, 19.15),
    (19.14, 129.56, 63.94, 14.54, 19.30),
    (20.21, 136.74, 68.87, 16.85, 19.85),
    (21.50, 143.38, 71.56, 18.27, 21.66),
    (23.74, 149.14, 74.17, 20.87, 23.53),
)
PUBLISHED_P99 = (
    (18.01, 8.48, 48.13, 9.40, 16.62),
    (18.15, 9.15, 49.25, 9.72, 16.51),
    (18.07, 10.17, 52.35, 10.69, 17.30),
    (17.72, 11.32, 53.78, 11.67, 16.24),
    (17.75, 13.25, 57.51, 13.66, 16.40),
    (17.71, 14.56, 58.90, 14.93, 16.28),
    (19.38, 16.70, 66.58, 17.18, 18.25),
    (20.73, 18.30, 71.05, 18.83, 19.77),
    (23.08, 51.56, 75.70, 21.20, 22.21),
)


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


def published_speedup(claim: SpeedupClaim) -> float:
    """The claim's figure, from the averages of the published tables."""
    rows = PUBLISHED_TTFT if claim.metric == "ttft" else PUBLISHED_P99
    over, hybrid = STUDY.index(claim.over), STUDY.index(CASE4)
    return sum(row[over] for row in rows) / sum(row[hybrid] for row in rows)


def published_wins(rows: tuple[tuple[float, ...], ...], case: Case = CASE4) -> int:
    """In how many rows of a published table ``case`` is lowest."""
    return sum(row[STUDY.index(case)] == min(row) for row in rows)


def verdict(figure: str, *, holds: bool, judged: bool) -> str:
    """``figure``, and whether its claim holds where that can be ``judged`` by it."""
    return f"{figure}: {'holds' if holds else 'does not hold'}" if judged else figure


@dataclass(frozen=True)
class Wins:
    """In how many rows a case is lowest, and which of its rivals were not measured and so could not win any."""

    won: int
    rows: int
    absent: tuple[Case, ...] = ()

    def verdict(self, claimed: int, rows: int, *, judged: bool) -> str:
        """Whether ``claimed`` of all ``rows`` were won: rivals that were not measured may leave that open."""
        if not self.rows:
            return "not measured"
        holds, told, judged = self.won >= claimed, f"{self.won} of {self.rows}", judged and self.rows == rows
        if self.absent and (holds or not judged):
            names = " and ".join(case.title for case in self.absent)
            return f"{told} without {names}, which {'was' if len(self.absent) == 1 else 'were'} not measured"
        return verdict(told, holds=holds, judged=judged)


def count_wins(values: pd.DataFrame, case: Case, rivals: Sequence[Case]) -> Wins:
    """Over the rows that ``case`` and all measured rivals have; no rows where there is nothing to compare."""
    known = values[[c.column for c in (case, *rivals)]].dropna(axis=1, how="all").dropna()
    absent = tuple(rival for rival in rivals if rival.column not in known)
    if case.column not in known or len(absent) == len(rivals):
        return Wins(0, 0)
    return Wins(int((known[case.column] == known.min(axis=1)).sum()), len(known), absent)


def rows_won(tables: dict[str, Table], hybrid: Case) -> Wins:
    """By the hybrid, of TTFT and of P99, against the study's other cases."""
    rivals = [case for case in STUDY if case != CASE4]
    ttft, p99 = (count_wins(tables[key].values, hybrid, rivals) for key in ("ttft", "p99"))
    return Wins(ttft.won + p99.won, ttft.rows + p99.rows, tuple(c for c in rivals if c in (*ttft.absent, *p99.absent)))


def cuda_graph_lowest(table: Table, hybrid: Case) -> Wins:
    """In how many rows CUDA Graph is lowest, against the study's other cases with this hybrid."""
    found = count_wins(table.values[table.values.index <= LOWEST_UP_TO], CASE2, (CASE1, CASE3, hybrid, CASE5))
    return Wins(0, 0) if hybrid in found.absent else found


def claim_rows(tables: dict[str, Table], *, judged: bool) -> list[list[str]]:
    """One line a claim: claim, in the text, by the published tables, and measured for both hybrids.

    ``judged``: with a verdict, where all of the study's lengths were measured.
    """
    rows = []
    for claim in SPEEDUP_CLAIMS:
        name = f"{claim.over.title} / hybrid, {claim.metric.upper()}"
        figures = [f"{claim.claimed:.2f} ×", f"{published_speedup(claim):.2f} ×"]
        rows.append([name, *figures, *(measured_speedups(claim, tables, hybrid, judged) for hybrid in HYBRIDS)])
    published = published_wins(PUBLISHED_TTFT) + published_wins(PUBLISHED_P99)
    wins = [f"rows won of {CLAIMED_ROWS}", f"{CLAIMED_WINS}", f"{published}"]
    lowest = [
        f"CUDA Graph has the lowest P99 up to {LOWEST_UP_TO} tokens",
        f"{LOWEST_ROWS} of {LOWEST_ROWS}",
        f"{published_wins(PUBLISHED_P99, CASE2)} of {LOWEST_ROWS}",
    ]
    for hybrid in HYBRIDS:
        wins.append(rows_won(tables, hybrid).verdict(CLAIMED_WINS, CLAIMED_ROWS, judged=judged))
        lowest.append(cuda_graph_lowest(tables["p99"], hybrid).verdict(LOWEST_ROWS, LOWEST_ROWS, judged=judged))
    return [*rows, wins, lowest]


def measured_speedups(claim: SpeedupClaim, tables: dict[str, Table], hybrid: Case, judged: bool) -> str:
    """What was measured of a claim; for TTFT also without cold and first-seen requests."""
    names = {"ttft": "protocol", "warm": "warm"} if claim.metric == "ttft" else {"p99": ""}
    told = {name: _speedup(claim, tables[key], hybrid, judged) for key, name in names.items()}
    return "; ".join(f"{name} {speedup}".strip() for name, speedup in told.items() if speedup) or "not measured"


def _speedup(claim: SpeedupClaim, table: Table, hybrid: Case, judged: bool) -> str:
    """By the averages over the lengths that both cases have, whatever others have; empty where there is none."""
    shared = table.values[[claim.over.column, hybrid.column]].dropna()
    if shared.empty:
        return ""
    speedup = float(shared[claim.over.column].mean() / shared[hybrid.column].mean())
    complete = set(PAPER_PROMPT_LENGTHS) <= set(shared.index)
    over = "" if complete else f" over {len(shared)} length{'s' if len(shared) > 1 else ''}"
    return verdict(f"{speedup:.2f} ×{over}", holds=speedup >= claim.claimed, judged=judged and complete)


assert len(PUBLISHED_TTFT) == len(PUBLISHED_P99) == len(PAPER_PROMPT_LENGTHS)
