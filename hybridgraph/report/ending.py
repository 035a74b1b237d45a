"""What a complete run ends with: the answer in at most ten lines, and where everything is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from hybridgraph.report.claims import HYBRIDS, Finding
from hybridgraph.report.grid import plain
from hybridgraph.report.load import Results
from hybridgraph.report.tables import WARM, Table, figure

MOST_LINES = 10


def ending(
    results: Results, tables: Mapping[str, Table], found: Iterable[Finding], report: Path, page: Path
) -> list[str]:
    """The warm averages and what they gain, which claims of the study hold, and the paths of report and page."""
    return [*_averages(tables[WARM.key]), _claims(results, found), f"report: {report}", f"page: {page}"]


def _averages(table: Table) -> list[str]:
    gains = {} if table.is_emulated else table.speedups
    lines = [
        [case.title, figure(table.averages.get(case.column)), figure(gains.get(case.column), " ×")]
        for case in table.measured
    ]
    heading = [f"warm TTFT, mean over {len(table.shared)} lengths", "ms", "gain"]
    absent = [case.title for case in table.cases if case not in table.measured]
    told = [f"not measured, as the report says: {', '.join(absent)}"] if absent else []
    return plain(heading, lines).splitlines() + told


def _claims(results: Results, found: Iterable[Finding]) -> str:
    if results.is_emulated:
        return "graphs are EMULATED: these are not CUDA Graph results"
    judged = [finding for finding in found if finding.verdict]
    if not judged:
        return "the study's claims: judged only where its protocol was measured"
    counts = []
    for hybrid in HYBRIDS:
        of = [finding.verdict for finding in judged if finding.hybrid == hybrid]
        counts.append(f"{of.count('holds')} of {len(of)} hold with {hybrid.title}")
    return f"the study's claims: {', '.join(counts)}"
