"""What each part contributes: the cases as they are, beside runs of them with one setting changed.

Such a run lies in ``ablation/NAME/`` of the results, for instance by

    ./run_case4_benchmark.sh --ops native --output-dir output/ablation/case4_native
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hybridgraph.bench.environment import ENVIRONMENT, read_environment
from hybridgraph.bench.samples import COLUMNS, Phase, RunIdentity
from hybridgraph.cases import CASES, Case, Part
from hybridgraph.config import SETTINGS
from hybridgraph.report.cells import read_table
from hybridgraph.report.load import SAME_STUDY, Results, differences
from hybridgraph.system.files import is_there

DIRECTORY = "ablation"
KINDS: tuple[Phase, ...] = ("ttft", "p99")
# What may be changed of a case without making another case of it.
CHANGED = [s for s in SETTINGS.values() if s.part not in (None, Part.FORWARDS, Part.ENGINES) and s.decides]


@dataclass(frozen=True)
class Variant:
    """One run of a case; ``flags`` are what it was given beside the case's own settings."""

    case: Case
    flags: str
    ttft: pd.DataFrame
    p99: pd.DataFrame

    def averages(self, lengths: Sequence[int]) -> dict[str, float]:
        """Means in ms over ``lengths``."""
        ttft, p99 = self.ttft.loc[list(lengths)], self.p99.loc[list(lengths)]
        return {
            "first": ttft["first_seen_ms"].mean(),
            "warm": ttft["warm_mean_ms"].mean(),
            "device": ttft["device_ms"].mean(),
            "P99": p99["p99_ms"].mean(),
        }


def read_variants(directory: Path, results: Results) -> tuple[list[Variant], list[str]]:
    """The cases of ``results``, then the runs in ``ablation/``, by name; and a sentence for each that is left out.

    No variants where there is no such run of the same study. Raises UserError for a file that cannot be read.
    """
    own = [
        Variant(case, _flags(case, results.told(case, "configuration")), *(results.tables[k][case.name] for k in KINDS))
        for case in CASES
        if all(case.name in results.tables[kind] for kind in KINDS)
    ]
    lengths = _shared_lengths(own)
    changed, left_out = [], []
    for path, case in _runs(directory / DIRECTORY):
        tables = [read_table(path / f"{case.name}_{kind}.csv", COLUMNS[kind]) for kind in KINDS]
        if differences(tables[0], results.identity, SAME_STUDY):
            continue
        told = read_environment(path / ENVIRONMENT)["cases"].get(case.name, {}).get("configuration", {})
        variant = Variant(case, _flags(case, told), *(table.set_index("prompt_length") for table in tables))
        other = differences(tables[0], results.identity, RunIdentity.COMPARABLE)
        if not other and not lengths <= _shared_lengths([variant]):
            other = "it has not been measured at all lengths"
        if other:
            left_out.append(f"{DIRECTORY}/{path.name} is left out: {other}")
        else:
            changed.append(variant)
    return own + changed if changed else [], left_out


def _shared_lengths(variants: Sequence[Variant]) -> set[int]:
    """At which all of them have both a TTFT and a P99."""
    found = [{*variant.ttft.index} & {*variant.p99.index} for variant in variants]
    return set.intersection(*found) if found else set()


def _runs(directory: Path) -> Iterator[tuple[Path, Case]]:
    """Those that have come to their P99."""
    for path in sorted(directory.glob("*")):
        for case in CASES:
            if all(is_there(path / f"{case.name}_{kind}.csv") for kind in KINDS):
                yield path, case


def _flags(case: Case, configuration: dict[str, Any]) -> str:
    told = []
    for setting in CHANGED:
        own = case.ops if setting.part is Part.OPS else setting.default
        value = configuration.get(setting.name, own)
        if setting.concerns(case) and value != own:
            told.append(setting.as_flag(value))
    return " ".join(told)
