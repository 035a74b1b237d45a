"""The answer to the study's question in three sentences, computed from what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from hybridgraph.cases import CASE1, CASE2, CASE3, CASE4, CASE4_FUSED, Case
from hybridgraph.report.evidence import Evidence, ratio
from hybridgraph.report.load import Results
from hybridgraph.report.tables import WARM, Table


def answer(results: Results, evidence: Evidence, tables: Mapping[str, Table]) -> list[str]:
    """What the lowest latency is, what each part contributes, and how sure that is: a sentence each, in Markdown."""
    table = tables.get(WARM.key)
    if table is None or not table.averages:
        return ["No warm request was measured at a length that all cases share."]
    return [_lowest(results, table), _contributions(table), _certainty(results, evidence, table)]


def _lowest(results: Results, table: Table) -> str:
    best = min(table.measured, key=lambda case: table.averages[case.column])
    lengths = table.shared.index
    over = f"{lengths.min()} to {lengths.max()} tokens" if len(lengths) > 1 else f"{lengths.min()} tokens"
    sentence = (
        f"Warm, a prompt of {over} is answered in **{table.averages[best.column]:.2f} ms** on average by {best.title}"
    )
    if CASE1.column in table.averages and best.name != CASE1.name:
        sentence += f", {_times(table, best)} as fast as the baseline ({table.averages[CASE1.column]:.2f} ms)"
    floors = results.tables["ttft"][best.name]["floor_ms"].reindex(lengths)
    if floors.notna().all():
        sentence += f" and {table.averages[best.column] / floors.mean():.2f} times the least that the hardware needs"
    return f"{sentence}."


def _contributions(table: Table) -> str:
    parts = {"CUDA Graphs alone": CASE2, "JIT alone": CASE3, "both": CASE4, "both with the fused forward": CASE4_FUSED}
    if CASE1.column not in table.averages:
        return "What each part contributes is not known: the baseline was not measured."
    told = [f"{name} {_times(table, case)}" for name, case in parts.items() if case.column in table.averages]
    return f"Against the baseline: {', '.join(told)} as fast." if told else "Only the baseline was measured."


def _times(table: Table, case: Case) -> str:
    return f"{table.averages[CASE1.column] / table.averages[case.column]:.2f} times"


def _certainty(results: Results, evidence: Evidence, table: Table) -> str:
    if results.is_emulated:
        return "**Graphs are emulated on this machine: none of this is a CUDA Graph result.**"
    pair = sorted(table.measured, key=lambda case: table.averages[case.column])[:2]
    lengths = [int(length) for length in table.shared.index]
    if len(pair) < 2:
        return "There is nothing to compare it with."
    found = ratio(evidence.of(WARM, pair[1]), evidence.of(WARM, pair[0]), lengths, in_pairs=True)
    if not found.is_known:
        return "How sure that is cannot be told: too few samples are here."
    apart = f"{pair[1].title} takes {found.low:.2f} to {found.high:.2f} times as long as {pair[0].title}"
    if not found.excludes(1):
        return f"{pair[1].title} and {pair[0].title} are no different beyond the noise."
    if found.basis == "launches":
        return f"{apart} (95 % interval over {found.count} launches)."
    return f"{apart}, but with one launch of each case nothing tells how much launches differ."
