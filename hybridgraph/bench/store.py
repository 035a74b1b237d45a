"""The files a run writes: raw samples as they come, and the summaries derived from them.

``NAME_samples.jsonl`` holds every request of a run, a line each: the CSVs are rewritten from it
after every row, and ``--resume`` continues from it. What cannot be told by requests (the machine,
the configuration, what the GPU spent) is in ``environment.json``.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import Any

from hybridgraph.bench.environment import ENVIRONMENT, read_environment, record_case
from hybridgraph.bench.rows import Row, decode_row, known, p99_row, ttft_row
from hybridgraph.bench.samples import COLUMNS, PHASES, WARMTHS, Phase, RunIdentity, Sample
from hybridgraph.cases import CASES, PEERS
from hybridgraph.contract import GRAPH_PATHS, SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.system.files import read_lines, write_atomically, writing
from hybridgraph.system.locks import locked

SAMPLES, GZIPPED_SAMPLES = "_samples.jsonl", "_samples.jsonl.gz"
SUFFIXES = (*(f"_{phase}.csv" for phase in PHASES), SAMPLES, GZIPPED_SAMPLES)


def _move_to_previous(directory: Path, paths: Iterable[Path]) -> Path | None:
    old = [path for path in paths if os.path.lexists(path)]
    if not old:
        return None
    kept = directory / "previous" / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
    with writing(kept):
        kept.mkdir(parents=True)
        for path in old:
            path.replace(kept / path.name)
    return kept


def set_all_aside(directory: Path) -> Path | None:
    """Move what earlier runs of any case left to ``previous/TIME/``: a case that fails now must not keep old rows.

    Raises UserError where one of them still writes there.
    """
    cases = [ResultFiles(directory, case.name) for case in (*CASES, *PEERS)]
    with ExitStack() as held:
        for files in cases:
            held.enter_context(files.held())
        paths = [files.path(suffix) for files in cases for suffix in SUFFIXES]
        return _move_to_previous(directory, [*paths, directory / ENVIRONMENT, *directory.glob("final_*")])


@dataclass(frozen=True)
class ResultFiles:
    """The files of one case in one output directory."""

    directory: Path
    name: str

    def path(self, suffix: str) -> Path:
        return self.directory / f"{self.name}{suffix}"

    def exist(self) -> bool:
        """Whether a run has left any of them."""
        return any(os.path.lexists(self.path(suffix)) for suffix in SUFFIXES)

    def samples_path(self) -> Path | None:
        """Where the raw samples are, plain or gzipped; None where there are none."""
        found = (self.path(suffix) for suffix in (SAMPLES, GZIPPED_SAMPLES))
        return next((path for path in found if os.path.lexists(path)), None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only one run of a case at a time writes here; raises UserError where another one does, or none can."""
        busy = f"another run of {self.name} is writing to {self.directory}"
        with locked(self.directory / f".{self.name}.lock", busy=busy):
            yield

    def set_aside(self) -> Path | None:
        """Move what an earlier run left to ``previous/TIME/``; returns where, or None where there was nothing."""
        kept = _move_to_previous(self.directory, [self.path(suffix) for suffix in SUFFIXES])
        record = read_environment(self.directory / ENVIRONMENT)["cases"].get(self.name)
        if kept and record:
            record_case(kept, self.name, record)
        return kept

    def read_samples(self) -> tuple[RunIdentity, list[Sample]] | None:
        """The identity and the samples of the run that is here, None where none is.

        A line cut short by a crash is dropped. Raises UserError for anything but the samples of one run.
        """
        path = self.samples_path()
        if path is None:
            return None
        try:
            lines = read_lines(path)
            identity = _identity(json.loads(next(lines)))
            return identity, [_sample(json.loads(line), identity.run_id) for line in lines]
        except (StopIteration, ValueError, TypeError, RecursionError):
            raise UserError(f"{path} holds more or less than the samples of one run: run without --resume") from None


def _identity(fields: dict[str, Any]) -> RunIdentity:
    """The first line of a samples file; raises TypeError or ValueError for anything else."""
    identity = RunIdentity(**fields)
    if not all(isinstance(value, int if name == "seed" else str) for name, value in asdict(identity).items()):
        raise ValueError("no identity of a run")
    return identity


def _sample(fields: dict[str, Any], run_id: str) -> Sample:
    """Any other line of a samples file; raises TypeError or ValueError for anything else."""
    sample = Sample(**fields)
    times = [sample.ttft_ms, *sample.itl_ms, *known((sample.device_ms, sample.engine_ttft_ms))]
    numbers = all(isinstance(value, (int, float)) and 0 <= value < math.inf for value in times)
    named = sample.phase in PHASES and sample.graph_path in (None, *GRAPH_PATHS) and sample.warmth in WARMTHS
    noted = sample.overflowed in (None, False, True) and isinstance(sample.gc_collections, int)
    if not (numbers and named and noted and sample.run_id == run_id and isinstance(sample.prompt_length, int)):
        raise ValueError("no sample of this run")
    return sample


class ResultWriter:
    """Appends the rows of one run; after ``add`` returns, the row is on disk."""

    def __init__(self, files: ResultFiles, identity: RunIdentity, info: SourceInfo, samples: Sequence[Sample]) -> None:
        self.identity = identity
        self.samples = list(samples)
        self._files = files
        self.info = info
        lines = [json.dumps(asdict(identity)), *(json.dumps(asdict(sample)) for sample in samples)]
        write_atomically(files.path(SAMPLES), "\n".join(lines) + "\n")

    def is_done(self, phase: Phase, length: int, count: int) -> bool:
        return sum(s.phase == phase and s.prompt_length == length for s in self.samples) >= count

    def add(self, row: Sequence[Sample]) -> None:
        """Store one row: all samples of one phase at one length, in one write."""
        path = self._files.path(SAMPLES)
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(asdict(sample)) + "\n" for sample in row))
            file.flush()
            os.fsync(file.fileno())
        self.samples += row
        self.write_summaries()

    def write_summaries(self) -> None:
        for phase, rows in self.summaries().items():
            write_atomically(self._files.path(f"_{phase}.csv"), _as_csv(COLUMNS[phase], rows))

    def summaries(self) -> dict[Phase, list[Row]]:
        """The rows of each phase that the samples so far are of."""
        rows: dict[Phase, list[Row]] = {
            "ttft": [ttft_row(samples, self.info) for samples in self._by_length("ttft")],
            "p99": [p99_row(samples) for samples in self._by_length("p99")],
            "decode": [decode_row(samples, self.info) for samples in self._by_length("decode")],
        }
        identity = asdict(self.identity)
        return {phase: [row | identity for row in found] for phase, found in rows.items() if found}

    def _by_length(self, phase: Phase) -> Iterator[list[Sample]]:
        """For each length measured in ``phase``: its samples; for TTFT, with those of the P99 phase."""
        phases = ("ttft", "p99") if phase == "ttft" else (phase,)
        for length in sorted({s.prompt_length for s in self.samples if s.phase == phase}):
            yield [s for s in self.samples if s.prompt_length == length and s.phase in phases]


def _as_csv(columns: Sequence[str], rows: Iterable[Row]) -> str:
    text = StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({column: _cell(row[column]) for column in columns} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
