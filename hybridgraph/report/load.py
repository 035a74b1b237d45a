"""Reading result files: every cell checked, and only rows that may stand beside each other kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from hybridgraph.bench.environment import ENVIRONMENT, read_environment
from hybridgraph.bench.samples import (
    COLUMNS,
    IDENTITY_COLUMNS,
    PHASES,
    TTFT_COLUMNS,
    Phase,
    RunIdentity,
    overflow_told,
    stopped_told,
)
from hybridgraph.cases import CASE4_FUSED, CASES, PEERS, Case
from hybridgraph.config import SETTINGS, ModelSettings, own_settings_of, separating
from hybridgraph.errors import UserError
from hybridgraph.report.cells import read_table
from hybridgraph.settings import Told
from hybridgraph.system.files import is_there

SWEEP = f"length_sweep/{CASE4_FUSED.name}_ttft.csv"
EMULATED_MARK = "~"  # behind the name of a case whose graphs are emulated
# What a directory beside the tables must share with them; one that came with a checkout, say, does not.
SAME_STUDY = (*separating(own_settings_of(ModelSettings)), "commit")


@dataclass(frozen=True)
class Results:
    """What a directory holds that may share a table."""

    tables: dict[str, dict[str, pd.DataFrame]]  # kind → case name → rows by prompt_length
    identity: dict[str, str]  # of the newest run kept
    environment: dict[str, Any]
    left_out: list[str] = field(default_factory=list)  # a sentence for each file whose rows are of another kind
    remarks: list[str] = field(default_factory=list)  # what else a reader must know of the rows
    sweep: pd.DataFrame | None = None  # a run of one case over many lengths, in a directory of its own

    def cases(self, kind: str) -> list[Case]:
        """The study's cases, measured or not, and the peers that were measured; emulated graphs are in the title."""
        shown = (*CASES, *(peer for peer in PEERS if peer.name in self.tables[kind]))
        return [
            replace(c, title=f"{c.title} (emulated)", short=f"{c.label}{EMULATED_MARK}")
            if self._emulated(kind, c.name)
            else c
            for c in shown
        ]

    def missing(self) -> list[Case]:
        """Those of the study that were not measured at all."""
        return [case for case in CASES if all(case.name not in rows for rows in self.tables.values())]

    @property
    def is_emulated(self) -> bool:
        """Whether any row kept was served by emulated graphs."""
        return any(map(self.has_emulated, self.tables))

    def has_emulated(self, kind: str) -> bool:
        """Whether any row of ``kind`` was served by emulated graphs."""
        return any(self._emulated(kind, name) for name in self.tables[kind])

    def _emulated(self, kind: str, name: str) -> bool:
        rows = self.tables[kind].get(name)
        return rows is not None and bool((rows["graph_backend"] == "emulated").any())

    def told(self, case: Case, *path: str) -> dict[str, Any]:
        """The object at ``path`` of what ``environment.json`` tells of ``case``; empty where there is none."""
        found = self.environment["cases"].get(case.name, {})
        for name in path:
            found = found.get(name, {})
            if not isinstance(found, dict):
                raise UserError(f"environment.json: {'.'.join(path)} of {case.name} is no object")
        return found

    def why_missing(self, case: Case) -> str:
        if any(sentence.startswith(tuple(f"{case.name}_{kind}.csv" for kind in PHASES)) for sentence in self.left_out):
            return "left out, as told below"
        reasons: dict[str, str] = self.environment.get("not_run", {})
        return reasons.get(case.name, f"not run ({case.script})")


def load_results(directory: Path) -> Results:
    """Read every result file of ``directory``; raises UserError with file, line and column of the first bad cell."""
    found = {which: read_table(path, COLUMNS[which[0]]) for which, path in result_files(directory).items()}
    if not found:
        raise UserError(f"{directory} holds no result files: run a case first, or give its --output-dir")
    environment = read_environment(directory / ENVIRONMENT)
    newest = max(found.values(), key=lambda table: datetime.fromisoformat(table["started"].iloc[0]))
    identity = {str(column): str(value) for column, value in newest.iloc[-1].items() if column in IDENTITY_COLUMNS}
    tables: dict[str, dict[str, pd.DataFrame]] = {kind: {} for kind in PHASES}
    left_out = []
    for (kind, name), table in found.items():
        if other := differences(table, identity, RunIdentity.COMPARABLE):
            left_out.append(f"{name}_{kind}.csv (run {table['run_id'].iloc[0]}) is left out: {other}")
        else:
            tables[kind][name] = table.set_index("prompt_length")
    sweep = read_table(directory / SWEEP, TTFT_COLUMNS) if is_there(directory / SWEEP) else None
    if sweep is not None and differences(sweep, identity, SAME_STUDY):
        sweep = None
    return Results(tables, identity, environment, left_out, _remarks(tables, environment), sweep)


def result_files(directory: Path) -> dict[tuple[Phase, str], Path]:
    """The result files that are there, by phase and the case's name."""
    return {
        (kind, case.name): path
        for kind in PHASES
        for case in (*CASES, *PEERS)
        if is_there(path := directory / f"{case.name}_{kind}.csv")
    }


def differences(table: pd.DataFrame, identity: dict[str, str], columns: Sequence[str]) -> str:
    """In which of ``columns`` a row of ``table`` is not as ``identity``, in words."""
    other = [c for c in columns if not (table[c] == identity[c]).all()]
    return ", ".join(f"{c} {table[c][table[c] != identity[c]].iloc[0]} instead of {identity[c]}" for c in other)


def _remarks(tables: dict[str, dict[str, pd.DataFrame]], environment: dict[str, Any]) -> list[str]:
    """What rows that may share a table need not share: commits, settings, a fresh generator, a finished run."""
    measured = {
        case: found
        for case in (*CASES, *PEERS)
        if (found := [rows[case.name] for rows in tables.values() if case.name in rows])
    }
    told = {case: environment["cases"].get(case.name, {}) for case in measured}
    remarks = [*_commits(measured), *_settings({case: told[case].get("configuration", {}) for case in measured})]
    for case, found in measured.items():
        lacking = [kind for kind, rows in tables.items() if rows and case.name not in rows]
        if lacking and case in CASES:
            remarks.append(f"{case.title}: no rows of {', '.join(lacking)}")
        ops = str(found[0]["ops"].iloc[0])
        if case.ops not in (None, ops):
            remarks.append(f"{case.title}: measured with --ops {ops}, its own are {case.ops}")
        if served := told[case].get("served_before"):
            remarks.append(f"{case.title}: its generator had answered {served} requests before: no request is cold")
        for column, tell in (("overflowed", overflow_told), ("stopped", stopped_told)):
            if sentence := tell(_total(tables, case, column)):
                remarks.append(f"{case.title}: {sentence}")
        if reason := environment["not_run"].get(case.name):
            run_ids = [run_id for rows in found for run_id in rows["run_id"]]
            ended = environment["ended_early"].get(case.name) in run_ids
            what = "the run" if ended else "the rows are from before its last attempt, which"
            remarks.append(f"{case.title}: {what} ended early: {reason}")
    return remarks


def _total(tables: dict[str, dict[str, pd.DataFrame]], case: Case, column: str) -> int:
    """How many requests of ``case`` a column counts, as far as is known."""
    kinds = ("ttft" if case.name in tables["ttft"] else "p99", "decode")  # a TTFT row counts the P99 requests as well
    return sum(int(tables[kind][case.name][column].sum()) for kind in kinds if case.name in tables[kind])


def _commits(measured: dict[Case, list[pd.DataFrame]]) -> list[str]:
    commits = {
        case.title: sorted({str(commit) or "unknown" for rows in found for commit in rows["commit"]})
        for case, found in measured.items()
    }
    if len(set().union(*commits.values())) < 2:
        return []
    named = ", ".join(f"{title} {' and '.join(found)}" for title, found in commits.items())
    return [f"The rows are of several commits: {named}"]


def _settings(configurations: dict[Case, dict[str, Any]]) -> list[str]:
    """The settings that no row tells, as flags: those that are not the default, and those in which the cases differ."""
    told = [setting for setting in SETTINGS.values() if setting.told is Told.WHERE_UNUSUAL]
    differing = [setting for setting in SETTINGS.values() if setting.told is Told.WHERE_DIFFERENT]
    told += [setting for setting in differing if _differs(setting.name, configurations.values())]
    unusual = {
        case.title: ", ".join(
            setting.as_flag(configuration[setting.name])
            for setting in told
            if setting.concerns(case) and configuration.get(setting.name, setting.default) != setting.default
        )
        for case, configuration in configurations.items()
    }
    if len(set(unusual.values())) == 1 and len(unusual) > 1:
        unusual = {"All cases": next(iter(unusual.values()))}
    return [f"{title}: measured with {flags}" for title, flags in unusual.items() if flags]


def _differs(name: str, configurations: Iterable[dict[str, Any]]) -> bool:
    values = [value for configuration in configurations if (value := configuration.get(name)) is not None]
    return any(value != values[0] for value in values)
