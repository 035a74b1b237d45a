"""The files a run writes: raw samples as they come, and the summaries derived from them.

``NAME_samples.jsonl`` holds every request of a run, a line each: the CSVs are rewritten from it
after every row, and ``--resume`` continues from it. What cannot be told by requests (the machine,
the configuration, what the GPU spent) is in ``environment.json``.
"""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

from hybridgraph.bench.environment import ENVIRONMENT, read_environment, record_case
from hybridgraph.bench.rows import Row, decode_row, known, p99_row, ttft_row
from hybridgraph.bench.samples import COLUMNS, PHASES, WARMTHS, Phase, RunIdentity, Sample
from hybridgraph.cases import CASES, PEERS
from hybridgraph.contract import GRAPH_PATHS, SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.system.files import is_there, open_regular, read_lines, write_atomically, writing
from hybridgraph.system.locks import locked

SAMPLES, GZIPPED_SAMPLES = "_samples.jsonl", "_samples.jsonl.gz"
PREFIX = "hybridgraph-"  # of a directory of ours below the temporary one
SUFFIXES = (*(f"_{phase}.csv" for phase in PHASES), SAMPLES, GZIPPED_SAMPLES)


def _make_previous(directory: Path) -> Path:
    """Make ``previous/TIME/`` of ``directory``."""
    kept = directory / "previous" / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
    with writing(kept):
        kept.mkdir(parents=True)
    return kept


def _move_to_previous(directory: Path, paths: Iterable[Path]) -> Path | None:
    old = [path for path in paths if is_there(path)]
    if not old:
        return None
    kept = _make_previous(directory)
    with writing(kept):
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
        return any(is_there(self.path(suffix)) for suffix in SUFFIXES)

    def samples_path(self) -> Path | None:
        """Where the raw samples are, plain or gzipped; None where there are none."""
        found = (self.path(suffix) for suffix in (SAMPLES, GZIPPED_SAMPLES))
        return next((path for path in found if is_there(path)), None)

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
    marks = all(mark in (None, False, True) for mark in (sample.overflowed, sample.stopped))
    noted = marks and isinstance(sample.gc_collections, int) and isinstance(sample.launch, int) and sample.launch > 0
    if not (numbers and named and noted and sample.run_id == run_id and isinstance(sample.prompt_length, int)):
        raise ValueError("no sample of this run")
    return sample


class ResultWriter:
    """The results of one run, on disk and here. After ``add`` returns, its row is on disk."""

    def __init__(self, files: ResultFiles, identity: RunIdentity, info: SourceInfo, samples: Sequence[Sample]) -> None:
        self.identity = identity
        self.info = info
        self.samples: list[Sample] = []
        self.facts: dict[str, Any] = {}  # what environment.json tells of the run
        self._files = files
        self._path = files.path(SAMPLES)
        self._groups: dict[tuple[Phase, int], list[Sample]] = {}
        self._rows: dict[Phase, dict[int, Row]] = {phase: {} for phase in PHASES}
        self._take(samples)
        write_atomically(self._path, _as_lines([identity, *self.samples]))
        with writing(self._path):
            self._left = _Stamp.of(self._path.lstat())

    def is_done(self, phase: Phase, length: int, count: int, launch: int = 1) -> bool:
        """Whether ``launch`` has ``count`` samples of ``phase`` at this length."""
        return sum(sample.launch == launch for sample in self._groups.get((phase, length), ())) >= count

    def add(self, row: Sequence[Sample]) -> None:
        """Store one row: all samples of one phase at one length.

        Raises UserError where that cannot be, once the run's samples, those of ``row`` among them, are kept elsewhere.
        """
        self._take(row)
        try:
            self._append(_as_lines(row))
        except OSError as error:
            self._leave(error)
        self.write_summaries()

    def require_own_file(self) -> None:
        """Raise as ``add`` does where the file of the samples is no longer the one that this run writes."""
        try:
            self._left.require(self._path.lstat())
        except OSError as error:
            self._leave(error)

    def record(self, **facts: Any) -> None:
        """Write what no request tells of the run to ``environment.json``: ``facts``, and those told before."""
        self.facts |= facts
        record_case(self._files.directory, self._files.name, self.facts)

    def write_summaries(self) -> None:
        for phase, rows in self.summaries().items():
            write_atomically(self._files.path(f"_{phase}.csv"), _as_csv(COLUMNS[phase], rows))

    def summaries(self) -> dict[Phase, list[Row]]:
        """Return the rows of each phase that the samples so far are of, by ascending length."""
        identity = asdict(self.identity)
        return {
            phase: [row | identity for _, row in sorted(rows.items())] for phase, rows in self._rows.items() if rows
        }

    def _take(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self._groups.setdefault((sample.phase, sample.prompt_length), []).append(sample)
        self.samples += samples
        for length in {sample.prompt_length for sample in samples}:
            self._summarize(length)

    def _summarize(self, length: int) -> None:
        """Derive the rows of one length anew; that of TTFT is over the samples of the P99 phase as well."""
        ttft, p99, decode = (self._groups.get((phase, length)) for phase in PHASES)
        if ttft:
            self._rows["ttft"][length] = ttft_row([*ttft, *(p99 or ())], self.info)
        if p99:
            self._rows["p99"][length] = p99_row(p99)
        if decode:
            self._rows["decode"][length] = decode_row(decode, self.info)

    def _append(self, lines: str) -> None:
        """Append to the file that this run has left; raises OSError where there is another one, or none."""
        with os.fdopen(open_regular(self._path, os.O_WRONLY | os.O_APPEND), "wb") as file:
            self._left.require(os.fstat(file.fileno()))
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
            self._left = self._left.longer_by(len(lines.encode()))

    def _leave(self, reason: OSError) -> NoReturn:
        """Raise UserError: nothing more is measured for a file that cannot be written. All that was, is kept."""
        kept = self._keep_elsewhere()
        raise UserError(
            f"cannot go on writing {self._path} ({reason.strerror or reason}): "
            f"what was measured is kept in {kept}, where --resume goes on"
        )

    def _keep_elsewhere(self) -> Path:
        """Write all results where that can still be; returns where. Raises UserError where it can be nowhere."""
        for kept in self._places():
            try:
                copy = ResultWriter(ResultFiles(kept, self._files.name), self.identity, self.info, self.samples)
                copy.write_summaries()
                copy.record(**self.facts)
            except UserError:
                shutil.rmtree(kept, ignore_errors=True)
            else:
                return kept
        raise UserError(f"cannot go on writing {self._path}, and what was measured can be kept nowhere else")

    def _places(self) -> Iterator[Path]:
        """Make a directory beside earlier results, then one of its own."""
        with suppress(UserError):
            yield _make_previous(self._files.directory)
        with suppress(OSError):
            yield Path(tempfile.mkdtemp(prefix=PREFIX))


@dataclass(frozen=True)
class _Stamp:
    """What tells a file that was left from any other: its device, its inode, and how long it was."""

    device: int
    inode: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size)

    def require(self, status: os.stat_result) -> None:
        """Raise OSError for the status of another file, or of this one at another length."""
        if _Stamp.of(status) != self:
            raise OSError(errno.ESTALE, "another program has replaced or changed it")

    def longer_by(self, num_bytes: int) -> _Stamp:
        return replace(self, size=self.size + num_bytes)


def _as_lines(records: Iterable[RunIdentity | Sample]) -> str:
    return "".join(json.dumps(asdict(record)) + "\n" for record in records)


def _as_csv(columns: Sequence[str], rows: Iterable[Row]) -> str:
    text = StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({column: _cell(row[column]) for column in columns} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
