"""What becomes of a run whose process is stopped, or whose files are taken away, in the middle of a request."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hybridgraph.bench.environment import ENVIRONMENT, read_environment
from hybridgraph.bench.store import ResultFiles
from hybridgraph.cases import CASE1
from hybridgraph.report.main import generate_final_tables
from hybridgraph.system import standstill

ROOT = Path(__file__).resolve().parent.parent
LENGTHS, TTFT, P99 = (3, 7), 2, 4
HELD = TTFT * len(LENGTHS) + 2  # the second request of the P99 row of the first length
MEASURED_THEN = TTFT * len(LENGTHS) + P99
ALL = (TTFT + P99) * len(LENGTHS)
PROTOCOL = ("--prompt-lengths", "3,7", "--ttft-iterations", str(TTFT), "--p99-iterations", str(P99))
SAMPLES = f"{CASE1.name}_samples.jsonl"


def command(output: Path, *flags: str, hold_at: int) -> list[str]:
    return [sys.executable, "-m", "tests.toy_measurement", str(hold_at), "--output-dir", str(output), *PROTOCOL, *flags]


@contextmanager
def held_run(output: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that waits within request HELD until the block has ended; then it has ended, too."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(output, hold_at=HELD), cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == f"request {HELD}\n"
            yield process
            process.told = process.communicate("\n", timeout=120)
        finally:
            process.kill()


def state_of(process: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_request_in_which_the_process_was_stopped_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_run(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        while state_of(process) != "T":
            time.sleep(0.01)
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)
    assert process.returncode == 0
    told = "1 request was in flight while a process stood still (stopped or suspended): its time counts that"
    assert told in process.told[0]  # type: ignore[attr-defined]
    found = ResultFiles(tmp_path, CASE1.name).read_samples()
    assert found is not None
    stopped = [sample for sample in found[1] if sample.stopped]
    assert [(s.phase, s.prompt_length, s.iteration) for s in stopped] == [("p99", 3, 1)]
    assert stopped[0].ttft_ms >= 500
    assert {sample.stopped for sample in found[1]} == {False, True}
    assert [row["stopped"] for row in rows(tmp_path / f"{CASE1.name}_p99.csv")] == ["1", "0"]
    assert [row["stopped"] for row in rows(tmp_path / f"{CASE1.name}_ttft.csv")] == ["1", "0"], (
        "its warm mean counts it"
    )
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert f"Baseline: {told}" in " ".join(capsys.readouterr().out.split())
    assert f"- Baseline: {told}" in (tmp_path / "final_report.md").read_text()


def test_a_request_in_which_the_machine_slept_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep_ns = 10**9
    monkeypatch.setattr(standstill, "_asleep_ns", lambda: asleep_ns)
    watched = standstill.Standstill()
    assert watched.last_ended_ns() is None
    asleep_ns += 10**6  # two clocks, read one after the other
    assert watched.last_ended_ns() is None
    begun_ns = time.perf_counter_ns()
    asleep_ns += 10**9
    found = watched.last_ended_ns()
    assert found is not None and found >= begun_ns
    assert watched.last_ended_ns() == found, "a later request is another one"


def test_a_process_that_is_continued_heeds_what_it_heeded_before() -> None:
    before = signal.getsignal(signal.SIGCONT)
    with standstill.Standstill().watch():
        assert signal.getsignal(signal.SIGCONT) != before
    assert signal.getsignal(signal.SIGCONT) == before


def delete(output: Path) -> None:
    (output / SAMPLES).unlink()


def truncate(output: Path) -> None:
    os.truncate(output / SAMPLES, 100)


def lengthen(output: Path) -> None:
    with (output / SAMPLES).open("a") as file:
        file.write("{}\n")


def replace(output: Path) -> None:
    content = (output / SAMPLES).read_text()
    (output / SAMPLES).rename(output / "moved")
    (output / SAMPLES).write_text(content)


def replace_by_link(output: Path) -> None:
    (output / SAMPLES).rename(output / "moved")
    (output / SAMPLES).symlink_to("moved")


def replace_by_pipe(output: Path) -> None:
    (output / SAMPLES).unlink()
    os.mkfifo(output / SAMPLES)


def replace_directory(output: Path) -> None:
    shutil.rmtree(output)
    output.mkdir()


def move_directory(output: Path) -> None:
    output.rename(output.with_name("moved"))


def replace_directory_by_file(output: Path) -> None:
    shutil.rmtree(output)
    output.write_text("")


DAMAGES = (
    delete, truncate, lengthen, replace, replace_by_link, replace_by_pipe, replace_directory, move_directory,
    replace_directory_by_file,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_run_whose_file_is_taken_away_ends_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    output, elsewhere = tmp_path / "output", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    with held_run(output) as process:
        damage(output)
        left = (output / SAMPLES).read_bytes() if (output / SAMPLES).is_file() else None
    (line,) = process.told[1].splitlines()  # type: ignore[attr-defined]
    assert process.returncode == 2
    assert line.startswith(f"error: cannot go on writing {output / SAMPLES} (")
    if left is not None:
        assert (output / SAMPLES).read_bytes() == left, "nothing is written into what is another's"
    places = [*(output / "previous").glob("*"), *elsewhere.iterdir()] if output.is_dir() else [*elsewhere.iterdir()]
    (kept,) = places
    assert line.endswith(f"what was measured is kept in {kept}, where --resume goes on")
    found = ResultFiles(kept, CASE1.name).read_samples()
    assert found is not None and len(found[1]) == MEASURED_THEN
    assert len(rows(kept / f"{CASE1.name}_p99.csv")) == 1
    again = subprocess.run(command(kept, "--resume", hold_at=0), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    resumed = ResultFiles(kept, CASE1.name).read_samples()
    assert resumed is not None and resumed[0] == found[0]
    assert len(resumed[1]) == ALL and resumed[1][:MEASURED_THEN] == found[1]
    assert "stats" in read_environment(kept / ENVIRONMENT)["cases"][CASE1.name]


RUN = "runpy.run_module('tests.toy_measurement', run_name='__main__')"


def test_a_run_that_can_be_kept_nowhere_says_so(tmp_path: Path) -> None:
    limited = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); {RUN}"
    run = subprocess.run(
        [sys.executable, "-c", limited, *command(tmp_path, hold_at=0)[3:]], cwd=ROOT, capture_output=True, text=True
    )
    (line,) = run.stderr.splitlines()
    assert run.returncode == 2
    assert line == f"error: cannot go on writing {tmp_path / SAMPLES}, and what was measured can be kept nowhere else"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.parent.parent / "outside")])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        (SAMPLES, 0), (f"{SAMPLES}.gz", 0), (f"{CASE1.name}_ttft.csv", 0), (ENVIRONMENT, 2),
        (f"{SAMPLES}.partial", 0), (f"{CASE1.name}_ttft.csv.partial", 0), (f"{ENVIRONMENT}.partial", 0),
        (f".{CASE1.name}.lock", 2), (".environment.lock", 2),
    ],
)  # fmt: skip
@pytest.mark.timeout(120)
def test_a_run_neither_waits_for_pipes_nor_follows_links_under_its_names(
    tmp_path: Path, make: Callable[[Path], None], name: str, code: int
) -> None:
    outside, output = tmp_path / "outside", tmp_path / "output"
    outside.write_text("of someone else")
    output.mkdir()
    make(output / name)
    run = subprocess.run(command(output, hold_at=0), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert run.stderr.count("\n") <= 1 and "Traceback" not in run.stderr
    assert outside.read_text() == "of someone else"
    assert code == 2 or len(rows(output / f"{CASE1.name}_p99.csv")) == 2
