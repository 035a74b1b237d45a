"""The complete run: every case as a process of its own, in order, then the tables.

python -m hybridgraph study --output-dir output

It holds the output directory. A case that fails does not end the others: why it did not run is written down.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hybridgraph.bench.directory import held_by_complete_run
from hybridgraph.bench.environment import record_not_run, run_id_of, why_ended
from hybridgraph.bench.store import ResultFiles, set_all_aside
from hybridgraph.cases import CASE5, CASES, Case
from hybridgraph.cli import flags, setup
from hybridgraph.cli.commands import MAIN, prepare, require_prompt_file
from hybridgraph.errors import UserError, one_line
from hybridgraph.system.console import IMPORTING, guarded, progress_bars, say
from hybridgraph.system.processes import INTERRUPTED, TOLD, failure, started
from hybridgraph.system.signals import stop_signals_raise

STOPPED = "interrupted: what was measured is kept; --resume goes on from there"
ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "generate_final_tables.py"


@guarded(interrupted=STOPPED)
def run_study(argv: Sequence[str]) -> int:
    """Measure every case and print the tables; returns the exit code: 0, or 1 where a case failed."""
    asked = flags.study(argv)
    with held_by_complete_run(asked.config.output_path):
        return CompleteRun(asked).run()


@guarded(interrupted=STOPPED)
def check(argv: Sequence[str]) -> int:
    """Say in one line what would end each of the cases, such as a device that does not exist; returns the exit code."""
    config = flags.study(argv).config
    require_prompt_file(config)
    prepare(config)
    with progress_bars(ticking=True) as bars:
        bars(IMPORTING, 0, 1)
        from hybridgraph.machine.device import existing_device
        from hybridgraph.models.hub import numbers_of
        from hybridgraph.sources.build import default_model

        device = existing_device(config.device)
        model = config.model or default_model(device)
        bars("looking the model up", 0, 1)
        limit = numbers_of(model, config.load_format).get("max_position_embeddings")
    if isinstance(limit, int) and limit > 0:
        config.fitted(limit, model)
    return 0


class CompleteRun:
    """The steps of a complete run, and what failed of them."""

    def __init__(self, asked: flags.Study) -> None:
        self._asked = asked
        self._directory = asked.config.output_path
        self._failed: list[str] = []
        self._skipped: list[str] = []
        self._started_s = 0.0
        self._told = False  # whether the step in flight has told its user of the interruption itself

    def run(self) -> int:
        """Run every step; returns the exit code."""
        try:
            with stop_signals_raise():
                return self._run()
        except (KeyboardInterrupt, SystemExit) as stop:
            if not self._told:
                say(STOPPED)
            return INTERRUPTED if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)

    def _run(self) -> int:
        if self._asked.with_tensorrt_llm:
            foresee_tensorrt_llm()
        if code := self._step("the check", MAIN, "check", *self._asked.flags):  # before earlier results are set aside
            return code
        if not self._asked.config.resume and (kept := set_all_aside(self._directory)) is not None:
            say(f"earlier results are kept in {kept}")
        self._started_s = time.monotonic()
        for launch, case in schedule(self._asked.launches):
            self._start(case, launch)
        self._print_tables()
        if self._failed:
            say(f"failed: {' '.join(self._failed)}")
        return int(bool(self._failed))

    def _start(self, case: Case, launch: int) -> None:
        """Measure one launch of a case; one that has failed before is not started again."""
        of, several = self._asked.launches, self._asked.launches > 1
        if launch > 1 and (case.name in self._failed or case.name in self._skipped):
            return
        told = f"== {case.name}: case {1 + CASES.index(case)} of {len(CASES)}"
        say((f"{told}, launch {launch} of {of}" if several else told) + self._time_left(case, launch))
        if several and self._asked.config.resume and self._is_complete(case, launch):
            say("this launch is complete already")
            return
        self._measure(case, launch)

    def _is_complete(self, case: Case, launch: int) -> bool:
        from hybridgraph.bench.run import is_complete  # only now: it takes numpy, which --help does without

        return is_complete(ResultFiles(self._directory, case.name), self._asked.config, launch)

    def _time_left(self, case: Case, launch: int) -> str:
        """What the launches that are left take at the pace so far, as the end of a sentence; empty for the first."""
        launches = [(number, each) for number, each in schedule(self._asked.launches) if self._is_measured(each)]
        if (launch, case) not in launches[1:]:
            return ""
        done = launches.index((launch, case))
        left_s = (time.monotonic() - self._started_s) / done * (len(launches) - done)
        return f", about {left_s / 60:.0f} min left" if left_s >= 90 else f", about {left_s:.0f} s left"

    def _is_measured(self, case: Case) -> bool:
        return case != CASE5 or self._asked.with_tensorrt_llm

    def _step(self, title: str, *arguments: str) -> int:
        """Run Python with ``arguments`` to its end; returns its exit code. A second signal kills it."""
        with started([sys.executable, *arguments], title=title, patience_s=None) as child:
            try:
                return child.wait() or 0
            except (KeyboardInterrupt, SystemExit):
                self._told = child.end(signal.SIGINT, patience_s=None) == INTERRUPTED
                raise

    def _measure(self, case: Case, launch: int) -> None:
        if case == CASE5:
            if not self._is_measured(case):
                self._skip(case, f"not asked for: add {flags.WITH_TENSORRT}")
                return
            try:
                setup.make_tensorrt_llm()
            except UserError as error:
                say(f"error: {one_line(error)}")
                self._fail(case, one_line(error))
                return
        own = [*self._asked.flags, *([f"--launch={launch}"] if launch > 1 else [])]
        code = self._step(case.name, *arguments_of(case, own))
        if code:
            # With TOLD the case has said why, and written it down where it could.
            self._fail(case, None if code == TOLD else failure(code))
            say(f"{case.name} {failure(code)}; the other cases go on")

    def _skip(self, case: Case, reason: str) -> None:
        say(f"{case.name} is skipped, {reason}")
        self._skipped.append(case.name)
        self._record(case, reason)

    def _fail(self, case: Case, reason: str | None) -> None:
        self._failed.append(case.name)
        if reason is not None:
            self._record(case, reason)

    def _record(self, case: Case, reason: str) -> None:
        try:
            record_reason(self._directory, case, reason)
        except UserError as error:
            say(f"error: {one_line(error)}")
            self._failed.append(f"{case.name}: reason not recorded")

    def _print_tables(self) -> None:
        """From whatever is in the output directory by now."""
        as_json = ["--json"] if self._asked.config.json else []
        where = f"--output-dir={self._asked.config.output_dir}"
        if self._step("the tables", str(TABLES), where, "--brief", *as_json):
            self._failed.append(TABLES.stem)


def schedule(launches: int) -> Iterator[tuple[int, Case]]:
    """Each launch of each case, one round of cases after the other; every second round is in the opposite order.

    So what drifts with time, as a machine does that warms up, tells no case from another.
    """
    for launch in range(1, launches + 1):
        for case in CASES if launch % 2 else reversed(CASES):
            yield launch, case


def record_reason(directory: Path, case: Case, reason: str) -> None:
    """Write down why a case has no rows, or no more of them, unless its end is known; raises UserError."""
    if why_ended(directory, case.name) is None or not ResultFiles(directory, case.name).exist():
        # The run is this very one, or the one that it resumes: others were set aside.
        record_not_run(directory, case.name, reason, run_id=run_id_of(directory, case.name))


def arguments_of(case: Case, own: Sequence[str]) -> list[str]:
    """What Python is started with to run ``case``: a variant of another case is that one with a flag more."""
    script, *more = case.script.split()
    base = next(other for other in CASES if other.script == script) if more else case
    return [MAIN, "case", base.key, *own, *more]


def foresee_tensorrt_llm() -> None:
    """Say before anything is measured that Case 5 cannot be."""
    if not os.environ.get("HYBRIDGRAPH_TRTLLM_PYTHON"):
        try:
            setup.tensorrt_llm_base()
        except UserError as error:
            say(f"error: {one_line(error)}")
            say("so case5_tensorrt_llm will fail; the other cases are measured")
