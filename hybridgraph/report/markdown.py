"""The report as Markdown: tables, speed-ups, claims, and everything a reader needs to doubt them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from hybridgraph.bench.samples import PAPER, paths_taken
from hybridgraph.errors import UserError
from hybridgraph.report.ablation import Variant
from hybridgraph.report.claims import claim_rows
from hybridgraph.report.load import LARGEST, Results
from hybridgraph.report.tables import AVERAGE, Table

DISTRIBUTIONS = "What the means hold"


def render(results: Results, tables: dict[str, Table], plots: Sequence[str], variants: Sequence[Variant] = ()) -> str:
    """The whole report."""
    sections = [
        "# Results",
        provenance(results),
        *_warnings(results),
        *(f"![{name}]({name})" for name in plots),
    ]
    for table in tables.values():
        sections += [f"## {table.metric.heading}, ms", _metric_table(table)]
        sections += table.rules()
        if speedups := table.speedups():
            listed = ", ".join(f"{title} {value:.2f} ×" for title, value in speedups.items())
            lengths = ", ".join(str(length) for length in table.shared.index)
            sections.append(f"Against the baseline, from the averages over {lengths} tokens: {listed}.")
    sections += [f"## {DISTRIBUTIONS}", _distributions(results)]
    sections += ["## The published claims", _claims(results, tables)]
    if variants:
        sections += ["## What each part contributes", _ablation(variants)]
    if economics := _economics(results):
        sections += ["## What graphs cost", economics]
    if spent := _spent(results):
        sections += ["## What the GPU spent", spent]
    return "\n\n".join(sections) + "\n"


def provenance(results: Results) -> str:
    """One line: what was measured, on what, how, when, by which code."""
    i = results.identity
    commit = i["commit"] or "unknown"
    return (
        f"{i['device']}; {i['model']}, {i['dtype']}, {i['load_format']} weights; protocol: {i['protocol']}; "
        f"sampling: {i['sampling']}; {i['started']}; commit {commit}"
    )


def _warnings(results: Results) -> list[str]:
    lines = []
    if results.is_emulated:
        lines.append("**Graphs are emulated here: these are not CUDA Graph results.**")
    lines += [f"- {case.title}: empty, {results.why_missing(case)}" for case in results.missing()]
    return ["\n".join(lines + [f"- {sentence}" for sentence in (*results.left_out, *results.remarks)])]


def _metric_table(table: Table) -> str:
    frame = table.frame()
    heading = ["tokens", *(case.title for case in table.cases), "winner"]
    return _grid(heading, ([_cell(value) for value in row] for row in frame.itertuples(index=False)), bold_last=True)


def _distributions(results: Results) -> str:
    """Protocol mean, cold, first-seen and warm apart, beside device time, floor and the paths taken."""
    times = ("mean_ms", "cold_ms", "first_seen_ms", "warm_mean_ms", "device_ms", "floor_ms")
    columns = (*times, "floor_ratio", "sustained_floor_ms")
    rows = []
    for case in results.cases("ttft"):
        if case.name in results.tables["ttft"]:
            for length, row in results.tables["ttft"][case.name].iterrows():
                cells = (_cell(row[column]) for column in columns)
                rows.append([case.title, str(length), *cells, paths_taken(row.to_dict())])
    named = ["mean", "cold", "first seen", "warm mean", "device", "floor", "ratio", "sustained floor"]
    heading = ["case", "tokens", *named, "paths"]
    rule = (
        "Milliseconds; ratio is warm mean to floor. The floor is the least time that bandwidth and matrix rate allow, "
        "both as short bursts reach them; the sustained floor has the matrix rate that power allows without a pause."
    )
    return f"{_grid(heading, rows)}\n\n{rule}"


def _claims(results: Results, tables: dict[str, Table]) -> str:
    measured = "measured on EMULATED graphs" if results.is_emulated else "measured"
    judged = results.identity["protocol"] == PAPER and not results.is_emulated
    heading = ["claim", "published text", "published tables", f"{measured}: Case 4", f"{measured}: Case 4 fused"]
    rule = (
        "A claim holds where the measured figure is at least the claimed one; a speed-up is of the averages over the "
        "lengths that both cases have. Only the study's protocol, at all of its lengths and on real graphs, gets a "
        "verdict. The protocol's means include cold and first-seen requests; the table under "
        f"'{DISTRIBUTIONS}' shows which case pays for what there."
    )
    return f"{_grid(heading, claim_rows(tables, judged=judged))}\n\n{rule}"


def _ablation(variants: Sequence[Variant]) -> str:
    """The cases and what becomes of them with one setting changed, over the lengths that all of these have."""
    lengths = sorted(set.intersection(*({*variant.ttft.index} & {*variant.p99.index} for variant in variants)))
    averages = [variant.averages(lengths) for variant in variants]
    rows = [
        [variant.case.title, f"`{variant.flags}`" if variant.flags else "", *map(_cell, figures.values())]
        for variant, figures in zip(variants, averages, strict=True)
    ]
    rule = (
        f"Milliseconds, averages over {', '.join(map(str, lengths))} tokens. Outside the device: sockets, checks, what "
        "is done on the host before a replay, and waking up."
    )
    return f"{_grid(['case', 'changed', *averages[0]], rows)}\n\n{rule}"


def _economics(results: Results) -> str:
    keys = ("seconds_a_graph", "driver_mib_a_graph", "saved_ms_a_request", "requests_to_pay_back")
    rows = []
    for case in results.cases("ttft"):
        if costs := results.told(case, "stats", "economics"):
            startup = results.told(case, "stats", "server").get("startup_s")
            counters = results.told(case, "stats", "counters")
            counted = ", ".join(f"{name} {count}" for name, count in counters.items() if count)
            rows.append([case.title, *(_cell(costs.get(key)) for key in keys), _cell(startup), counted])
    heading = [
        "case",
        "s a graph",
        "MiB a graph",
        "ms saved a request",
        "requests to pay back",
        "s to Ready",
        "counters",
    ]
    rule = (
        "Medians, of MiB the mean, over the prefill graphs captured before serving, without those whose length was "
        "captured again since; a request saves the time of the same forward without a graph less a replay's: the "
        "longer the prompt, the less, and the cases capture different lengths."
    )
    return f"{_grid(heading, rows)}\n\n{rule}" if rows else ""


def _spent(results: Results) -> str:
    """Power, energy and clock under each length's P99 requests, with whatever pauses the protocol has."""
    rows = []
    for case in results.cases("p99"):
        measured = results.tables["p99"].get(case.name)
        for length, requests in () if measured is None else measured["samples"].items():
            if spent := results.told(case, "gpu_spent", "p99", str(length)):
                rows.append([case.title, str(length), *map(_cell, _rates_of(spent, requests))])
    heading = [
        "case",
        "tokens",
        "W",
        "J a request, pauses included" if "apart" in results.identity["protocol"] else "J a request",
        "% of time capped by power",
        "by temperature",
        "SM clock after, MHz",
    ]
    rule = (
        "By the driver's counters, which are coarse: over rows of some tenths of a second to a few seconds, power and "
        "energy are known to about a tenth, and may show more than the chip's limit. The first row of a case may still "
        "count the phase before it."
    )
    return f"{_grid(heading, rows)}\n\n{rule}" if rows else ""


def _rates_of(spent: dict[str, Any], requests: float) -> list[object]:
    """What was counted over a row, by time and by request; a refusal stays as it was told."""

    def scaled(key: str, factor: float) -> object:
        value = spent.get(key)
        return value * factor if isinstance(value, (int, float)) and abs(value) < LARGEST else value

    wall_ms = spent.get("wall_ms")
    if not (isinstance(wall_ms, (int, float)) and 0 < wall_ms < LARGEST):
        raise UserError("environment.json: wall_ms in gpu_spent is no time that a row took")
    shares = [scaled(key, 100 / wall_ms) for key in ("power_capped_ms", "thermally_capped_ms")]
    return [scaled("energy_j", 1e3 / wall_ms), scaled("energy_j", 1 / requests), *shares, spent.get("sm_clock_mhz")]


def _grid(heading: Sequence[str], rows: Iterable[Sequence[str]], *, bold_last: bool = False) -> str:
    lines = [f"| {' | '.join(heading)} |", f"| {' | '.join('---' for _ in heading)} |"]
    for row in rows:
        cells = [f"**{cell}**" if bold_last and row[0] == AVERAGE and cell else cell for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return "" if value is None else str(value)
