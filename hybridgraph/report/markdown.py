"""The report as Markdown: tables, speed-ups, claims, and everything a reader needs to doubt them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from hybridgraph.bench.protocol import PAPER
from hybridgraph.cases import Case
from hybridgraph.contract import GRAPH_PATHS
from hybridgraph.errors import UserError
from hybridgraph.report.ablation import Variant
from hybridgraph.report.cells import LARGEST
from hybridgraph.report.claims import HYBRIDS, absent_rivals, claim_rows, findings
from hybridgraph.report.evidence import Evidence
from hybridgraph.report.grid import markdown
from hybridgraph.report.load import Results
from hybridgraph.report.study import METRICS, STUDY, figures
from hybridgraph.report.tables import AVERAGE, Table, figure

MEANS = "What the means hold"
LEGEND = (
    "In the tables {mark} is the least time of its row, or all that are no different from it. Gain is how many times "
    "as fast as the baseline, by the means."
)
PROTOCOLS = {PAPER: "the study's (5 + 100 requests a length, no warm-up, back to back)"}
WEIGHTS = {"dummy": "random weights", "auto": "real weights"}


def render(
    results: Results,
    tables: Mapping[str, Table],
    evidence: Evidence,
    plots: Sequence[str],
    variants: Sequence[Variant] = (),
) -> str:
    """The whole report."""
    sections = {
        **{f"{table.metric.heading}, ms": metric_section(table) for table in tables.values()},
        "The study's figures beside these, ms": study_section(results, tables),
        "The study's claims": claims_section(results, tables, evidence),
        "How sure the figures are": certainty_section(tables, evidence),
        "What each part contributes": ablation_section(variants),
        MEANS: _means(results),
        "Which graphs answered": _paths(results),
        "What graphs cost": economics_section(results),
        "What the GPU spent": spent_section(results),
    }
    return (
        "\n\n".join(
            [
                "# Results",
                _list([*provenance(results), LEGEND.format(mark="bold"), evidence.told()]),
                *(["**Graphs are emulated here: these are not CUDA Graph results.**"] if results.is_emulated else []),
                *filter(None, [_list(notes(results))]),
                *(f"![{name}]({name})" for name in plots),
                *(f"## {heading}\n\n{text}" for heading, text in sections.items() if text),
            ]
        )
        + "\n"
    )


def provenance(results: Results) -> list[str]:
    """What was measured, on what, how, when, by which code: a line each."""
    i = results.identity
    weights = WEIGHTS.get(i["load_format"], f"{i['load_format']} weights")
    return [
        f"Device: {i['device']}",
        f"Model: {i['model']}, {i['dtype']}, {weights}",
        f"Protocol: {PROTOCOLS.get(i['protocol'], i['protocol'])}",
        f"Sampling: {i['sampling']}",
        f"Newest run: {i['started']}, commit {i['commit'] or 'unknown'}",
    ]


def notes(results: Results) -> list[str]:
    """What a reader must know of the rows: which cases have none and why, what was left out, what was unusual."""
    empty = [f"{case.title}: empty, {results.why_missing(case)}" for case in results.missing()]
    return [*empty, *results.left_out, *results.remarks]


def metric_section(table: Table) -> str:
    """A table over prompt lengths, winners in bold."""
    grid = markdown(*table.text(winner="**{}**"))
    return "\n\n".join([grid, *table.rules()])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def study_section(results: Results, tables: Mapping[str, Table]) -> str:
    """Each figure of the study's tables, and what was measured here, next to each other."""
    sections = []
    for metric in METRICS:
        printed, table = figures(metric), tables[metric]
        here = {case.name: case for case in table.cases}  # with what is told of emulated graphs
        heading = [cell for case in STUDY for cell in (case.label, f"here{here[case.name].label[len(case.label) :]}")]
        lengths = sorted({*printed.index, *table.values.index})
        pairs = pd.concat([printed, table.values[[case.column for case in STUDY]]], axis=1, keys=("study", "here"))
        pairs = pairs.reindex(lengths)
        rows = [[str(length), *_pairs(row)] for length, row in zip(lengths, pairs.to_dict("records"), strict=True)]
        shared = pairs.loc[:, [column for column in pairs if pairs[column].notna().any()]].dropna()
        if len(shared):
            rows.append([AVERAGE, *_pairs(shared.mean().reindex(pairs.columns).to_dict())])
        sections += [f"### {table.metric.heading}", markdown(["tokens", *heading], rows, together=2)]
    i = results.identity
    rules = [
        "Left in a pair is what the study's table has, right what was measured here.",
        "The study measured Llama-2-7B in float16 by its own protocol, on a GPU that it does not name. "
        f"Here: {i['model']} in {i['dtype']} by the protocol '{i['protocol']}', on {i['device']}.",
    ]
    return "\n\n".join([*sections, _list(rules)])


def _pairs(row: Mapping[Any, float]) -> list[str]:
    return [figure(row[kind, case.column]) for case in STUDY for kind in ("study", "here")]


def claims_section(results: Results, tables: Mapping[str, Table], evidence: Evidence) -> str:
    """What the study claims, and whether it holds here."""
    judged = is_judged(results)
    shown = {case.name: case.label for case in tables["ttft"].cases}
    heading = ["claim", "text", "tables", *(shown[hybrid.name] for hybrid in HYBRIDS)]
    rules = [
        "Text is what the study says, tables is what its own tables give. The last two columns were measured here.",
        "A claim holds where the measured figure is at least the claimed one. It is open where the noise leaves both "
        "possible: the ends are in `final_claims.csv`.",
        "TTFT is the protocol's mean, which includes cold and first-seen requests (the report has them apart: "
        f"'{MEANS}'). Warm is the same without them.",
        "A speed-up is of the averages over the lengths that both cases have. Only the study's protocol gets a "
        "verdict, at all of its lengths and on real graphs.",
        "The last row counts where CUDA Graph alone has the lowest P99, up to 350 tokens. Of rows, 12+6 are 12 won and "
        "6 tied.",
    ]
    if judged and (absent := absent_rivals(tables)):
        names = " and ".join(case.title for case in absent)
        rules.append(f"Open: {names} {'was' if len(absent) == 1 else 'were'} not measured and could win some rows.")
    return "\n\n".join([markdown(heading, claim_rows(findings(tables, evidence, judged=judged))), _list(rules)])


def is_judged(results: Results) -> bool:
    """Whether the study's claims get a verdict: only by its protocol, and on real graphs."""
    return results.identity["protocol"] == PAPER and not results.is_emulated


def certainty_section(tables: Mapping[str, Table], evidence: Evidence) -> str:
    """The half width of each mean's interval over launches, and the upper bounds of P99, where there are any."""
    sections = []
    if evidence.launches > 1:
        for table in tables.values():
            rows = [[str(n), *_half_widths(table, evidence, [n])] for n in map(int, table.values.index)]
            rows.append([AVERAGE, *_half_widths(table, evidence, table.shared_lengths)])
            sections += [f"### {table.metric.heading}, ± %", markdown(_heading(table), rows)]
        sections.append("Half the 95 % interval of the mean over launches, as a share of the mean.")
    if "p99" in tables and evidence.samples:
        table = tables["p99"]
        bounds = {n: [evidence.tail(case, n) for case in table.cases] for n in map(int, table.values.index)}
        rows = [[str(n), *(figure(bound.upper) if bound else "" for bound in found)] for n, found in bounds.items()]
        if any(cell for _, *cells in rows for cell in cells):
            sections += ["### P99 is at most, ms", markdown(_heading(table), rows)]
            sections.append("At 95 %, whatever the distribution, of requests as these launches had them.")
        without = {bound.told() for found in bounds.values() for bound in found if bound and math.isnan(bound.upper)}
        sections += [_list(f"P99 has {reason}." for reason in sorted(without))] if without else []
    return "\n\n".join(sections)


def _heading(table: Table) -> list[str]:
    return ["tokens", *(case.label for case in table.cases)]


def _half_widths(table: Table, evidence: Evidence, lengths: Sequence[int]) -> list[str]:
    intervals = [evidence.of(table.metric, case).mean(lengths) for case in table.cases]
    return [figure(100 * (i.high - i.low) / (i.high + i.low)) for i in intervals]


def ablation_section(variants: Sequence[Variant]) -> str:
    """The cases and what becomes of them with one setting changed, over the lengths that all of these have."""
    if not variants:
        return ""
    lengths = sorted(set.intersection(*({*variant.ttft.index} & {*variant.p99.index} for variant in variants)))
    averages = [variant.averages(lengths) for variant in variants]
    rows = [
        [variant.case.label, shortened(variant.flags), *map(figure, figures.values())]
        for variant, figures in zip(variants, averages, strict=True)
    ]
    rule = (
        f"Milliseconds, averages over {', '.join(map(str, lengths))} tokens. First is the first request of a length. "
        "What a warm request takes beyond the device's time is sockets, checks, the host's work before a replay, and "
        "waking up."
    )
    return f"{markdown(['case', 'changed', *averages[0]], rows, keys=2)}\n\n{rule}"


def shortened(flags: str) -> str:
    """Flags for a cell: of a list of lengths the ends."""
    short = re.sub("([0-9]+),[0-9,]+,([0-9]+)", r"\1,…,\2", flags)
    return f"`{short}`" if short else ""


def _means(results: Results) -> str:
    """For each case: protocol mean, first request and warm mean apart, beside device time and floors."""
    columns = ("warm_mean_ms", "device_ms", "floor_ms", "floor_ratio", "sustained_floor_ms")
    others = ("mean_ms", "cold_ms", "first_seen_ms")
    heading = ["tokens", "mean", "first", "warm", "device", "floor", "× floor", "sustained"]
    sections = []
    for case, table in _measured(results, "ttft"):
        rows = []
        for length, row in zip(table.index, table[[*others, *columns]].to_dict("records"), strict=True):
            first = f"{figure(row['cold_ms'])}*" if pd.notna(row["cold_ms"]) else figure(row["first_seen_ms"])
            rows.append([str(length), figure(row["mean_ms"]), first, *(figure(row[column]) for column in columns)])
        sections += [f"### {case.title}", markdown(heading, rows)]
    rules = [
        "Milliseconds. Mean is of the protocol's requests, first of the first request at a length (*: cold, the first "
        "of the process), warm of all others, device of the warm ones' time on the device.",
        "The floor is the least time that bandwidth and matrix rate allow, both as short bursts reach them. × floor is "
        "the warm mean over it. The sustained floor has the matrix rate that power allows without a pause.",
    ]
    return "\n\n".join([*sections, _list(rules)])


def _paths(results: Results) -> str:
    """How many requests each kind of graph answered, a row a case."""
    rows = []
    for case, table in _measured(results, "ttft"):
        rows.append([case.title, *(figure(f"{table[path].sum():.0f}") for path in GRAPH_PATHS)])
    rule = "Requests for TTFT and P99 together."
    return f"{markdown(['case', *GRAPH_PATHS], rows)}\n\n{rule}" if rows else ""


def economics_section(results: Results) -> str:
    """What a graph costs and saves, and what the pools counted."""
    keys = ("seconds_a_graph", "driver_mib_a_graph", "saved_ms_a_request", "requests_to_pay_back")
    rows, counted = [], []
    for case in results.cases("ttft"):
        if costs := results.told(case, "stats", "economics"):
            startup = results.told(case, "stats", "server").get("startup_s")
            rows.append([case.label, *(figure(costs.get(key)) for key in keys), figure(startup)])
            counters = results.told(case, "stats", "counters")
            counts = ", ".join(f"{name} {count}" for name, count in counters.items() if count)
            counted += [f"{case.title}: {counts}"] if counts else []
    rules = [
        "Medians, of MiB the mean, over the prefill graphs captured before serving, without those whose length was "
        "captured again since.",
        "A request saves the time of the same forward without a graph, less a replay's. The longer the prompt the less "
        "it saves, and the cases capture different lengths.",
        *counted,
    ]
    heading = ["case", "s/graph", "MiB/graph", "saved, ms", "pays after", "ready, s"]
    return f"{markdown(heading, rows)}\n\n{_list(rules)}" if rows else ""


def spent_section(results: Results) -> str:
    """Power, energy and clock under each length's P99 requests, with whatever pauses the protocol has."""
    cells: dict[str, dict[tuple[int, str], object]] = {}
    cases = []
    for case, table in _measured(results, "p99"):
        for length, requests in zip(map(int, table.index), table["samples"], strict=True):
            if spent := results.told(case, "gpu_spent", "p99", str(length)):
                cases += [case] if case not in cases else []
                for name, value in rates_of(spent, requests).items():
                    cells.setdefault(name, {})[length, case.name] = value
    refused = sorted({str(v) for by_cell in cells.values() for v in by_cell.values() if isinstance(v, str)})
    nothing = [name for name, by_cell in cells.items() if not any(by_cell.values())]
    sections = []
    for name, by_cell in cells.items():
        if name in nothing:
            continue
        rows = [
            [str(length), *(_told(by_cell.get((length, case.name))) for case in cases)]
            for length in sorted({length for length, _ in by_cell})
        ]
        sections += [f"### {name}", markdown(["tokens", *(case.label for case in cases)], rows)]
    rules = [
        "By the driver's counters, which are coarse: over rows of some tenths of a second to a few seconds, power and "
        "energy are known to about a tenth, and may show more than the chip's limit.",
        "The first row of a case may still count the phase before it.",
        *(["Energy of a request includes its pause."] if "apart" in results.identity["protocol"] else []),
        *(f"{name}: none in any row." for name in nothing),
        *(f"A dash: {reason}" for reason in refused),
    ]
    return "\n\n".join([*sections, _list(rules)]) if sections else ""


def _told(value: object) -> str:
    return "–" if isinstance(value, str) else figure(value)


def rates_of(spent: dict[str, Any], requests: float) -> dict[str, object]:
    """What was counted over a row, by time and by request; a refusal stays as it was told."""

    def scaled(key: str, factor: float) -> object:
        value = spent.get(key)
        return value * factor if isinstance(value, (int, float)) and abs(value) < LARGEST else value

    wall_ms = spent.get("wall_ms")
    if not (isinstance(wall_ms, (int, float)) and 0 < wall_ms < LARGEST):
        raise UserError("environment.json: wall_ms in gpu_spent is no time that a row took")
    return {
        "Energy of a request, J": scaled("energy_j", 1 / requests),
        "Power, W": scaled("energy_j", 1e3 / wall_ms),
        "Time capped by power, %": scaled("power_capped_ms", 100 / wall_ms),
        "Time capped by temperature, %": scaled("thermally_capped_ms", 100 / wall_ms),
        "SM clock after the row, MHz": spent.get("sm_clock_mhz"),
    }


def _measured(results: Results, kind: str) -> Iterable[tuple[Case, pd.DataFrame]]:
    """The cases that have rows of ``kind``, with those."""
    return [
        (case, results.tables[kind][case.name]) for case in results.cases(kind) if case.name in results.tables[kind]
    ]
