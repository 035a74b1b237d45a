"""The complete run: its steps in order, what it writes down, and how it ends, with it everything that it started."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from checkouts import RECORDING_MAIN, ROOT, alive, calls_of, environ, make_checkout, processes, start, stub, wait_for

from hybridgraph.cases import CASES

NAMES = [case.name for case in CASES]
NOT_ASKED_FOR = "not asked for: add --with-tensorrt-llm"


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[str], Path]:
    """``checkout(body)``: one whose steps write their arguments down and then run ``body``."""
    return lambda body="": make_checkout(tmp_path / "checkout", RECORDING_MAIN + body)


def run(project: Path, *flags: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return start(project, "run_complete_benchmark.sh", *flags, HYBRIDGRAPH_PYTHON=sys.executable, **env)


def reasons(directory: Path) -> dict[str, str]:
    return json.loads((directory / "environment.json").read_text())["not_run"]


def test_a_complete_run_passes_its_flags_on_and_survives_failing_cases(checkout: Callable[..., Path]) -> None:
    project = checkout("""
if "case2" in sys.argv: sys.exit(2)
if "case3" in sys.argv: sys.exit(7)
if "case4" in sys.argv and "fused" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
""")
    done = run(project, "--seed", "1", "--output-dir", "o p")
    flags = "--seed 1 --output-dir o p"
    assert calls_of(project) == [
        f"check {flags}",
        f"case case1 {flags}",
        f"case case2 {flags}",
        f"case case3 {flags}",
        f"case case4 {flags}",
        f"case case4 {flags} --forward fused",
        "tables --output-dir=o p --brief",
    ]
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "failed: case2_async_cuda case3_jit_only case4_jit_cuda_fused"
    assert reasons(project / "o p") == {  # Case 2 has said so itself, with a reason of its own
        "case3_jit_only": "failed with exit code 7",
        "case4_jit_cuda_fused": "was ended by SIGKILL: most often the machine's memory is full",
        "case5_tensorrt_llm": NOT_ASKED_FOR,
    }


def test_each_case_is_announced_with_its_number(checkout: Callable[..., Path]) -> None:
    said = run(checkout()).stderr.splitlines()
    headings = [line.partition(", about ")[0] for line in said if line.startswith("== ")]
    assert headings == [f"== {name}: case {number} of 6" for number, name in enumerate(NAMES, start=1)]
    assert f"case5_tensorrt_llm is skipped, {NOT_ASKED_FOR}" in said


def test_nothing_is_set_aside_or_measured_where_the_check_fails(checkout: Callable[..., Path]) -> None:
    project = checkout("sys.exit(2)")
    (project / "output").mkdir()
    (project / "output/case1_baseline_ttft.csv").touch()
    assert run(project).returncode == 2
    assert calls_of(project) == ["check"]
    assert (project / "output/case1_baseline_ttft.csv").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_earlier_results_are_set_aside_unless_they_are_resumed(checkout: Callable[..., Path], resume: bool) -> None:
    project = checkout()
    (project / "output").mkdir()
    (project / "output/case1_baseline_ttft.csv").touch()
    done = run(project, *["--resume"] * resume)
    assert done.returncode == 0
    assert (project / "output/case1_baseline_ttft.csv").exists() == resume
    assert ("earlier results are kept in output/previous/" in done.stderr) != resume


def test_a_complete_run_without_its_tables_has_failed(checkout: Callable[..., Path]) -> None:
    project = checkout()
    (project / "generate_final_tables.py").write_text("raise SystemExit(2)")
    done = run(project)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "failed: generate_final_tables")


def test_an_output_directory_may_look_like_a_flag(checkout: Callable[..., Path]) -> None:
    project = checkout()
    done = run(project, "--output-dir=-x")
    assert done.returncode == 0, done.stderr
    assert (project / "-x").is_dir()
    assert calls_of(project)[-1] == "tables --output-dir=-x --brief"


def test_two_complete_runs_do_not_share_a_directory(checkout: Callable[..., Path]) -> None:
    project = checkout("""
while "case1" in sys.argv and not (root / "go").exists(): time.sleep(0.05)
""")
    command = [str(project / "run_complete_benchmark.sh")]
    env = environ(HYBRIDGRAPH_PYTHON=sys.executable)
    first = subprocess.Popen(command, cwd=project, env=env, stderr=subprocess.DEVNULL)
    wait_for(lambda: "case case1" in calls_of(project))
    second = run(project)
    assert (second.returncode, second.stderr) == (2, "error: another complete run is writing to output\n")
    elsewhere = run(project, "--output-dir", "/proc/none")
    assert (elsewhere.returncode, elsewhere.stderr) == (
        2,
        "error: cannot write /proc/none: No such file or directory\n",
    )
    (project / "go").touch()
    assert first.wait(timeout=240) == 0
    assert calls_of(project).count("check") == 1
    assert run(project).returncode == 0


def test_complete_run_with_tensorrt_llm_in_an_existing_interpreter(checkout: Callable[..., Path]) -> None:
    project = checkout()
    done = run(project, "--with-tensorrt-llm", "--json", HYBRIDGRAPH_TRTLLM_PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert calls_of(project)[-2:] == ["case case5 --json", "tables --output-dir=output --brief --json"]
    assert not (project / "output/environment.json").exists(), "nothing failed or was skipped"


def test_tensorrt_llm_that_cannot_be_set_up_is_a_failed_case_with_its_reason(
    checkout: Callable[..., Path], tmp_path: Path
) -> None:
    project = checkout()
    stub(tmp_path / "bin", "nvidia-smi", "exit 9")
    done = run(project, "--with-tensorrt-llm", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 1
    reason = "TensorRT-LLM needs an NVIDIA GPU, and nvidia-smi finds none"
    said = done.stderr.splitlines()
    assert said[-1] == "failed: case5_tensorrt_llm"
    first = said.index(f"error: {reason}")
    assert first < said.index("== case1_baseline: case 1 of 6"), "it is told before anything is measured"
    assert reasons(project / "output") == {"case5_tensorrt_llm": reason}
    assert calls_of(project)[-1] == "tables --output-dir=output --brief"


STEPS = {"check": "check", "case1": "case case1", "case4": "case case4 --forward fused", "tables": "tables"}
SLEEPING = """
if STEP in sys.argv and ("fused" in sys.argv) == (STEP == "case4"):
    def leave(number, frame):
        if TELLS: print("interrupted, --resume", file=sys.stderr, flush=True)
        os._exit(130 if TELLS else 1)
    signal.signal(signal.SIGINT, leave)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (root / "sleeps").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_everything_that_was_started(
    checkout: Callable[..., Path], number: signal.Signals, code: int, step: str, tells: bool
) -> None:
    body = SLEEPING.replace("TELLS", str(tells)).replace("STEP", repr(step))
    project = checkout(body)
    if step == "tables":
        (project / "generate_final_tables.py").write_text(
            RECORDING_MAIN.replace("parents[1]", "parent") + body.replace("'tables' in sys.argv", "True")
        )
    env = environ(HYBRIDGRAPH_PYTHON=sys.executable, MARK=str(project))
    command = [str(project / "run_complete_benchmark.sh")]
    process = subprocess.Popen(command, cwd=project, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for((project / "sleeps").exists)
    process.send_signal(number)
    said = process.communicate(timeout=240)[1]
    assert "--resume" in said and said.count("interrupted") == 1, "told once, by the step or for it"
    assert process.returncode == code
    assert alive(f"MARK={project}") == {}
    if step != "tables":
        assert calls_of(project)[-1] == STEPS[step], "no further step starts"


# What follows measures for real: a tiny model, few lengths, and pauses, so that a case is met in its middle.
TINY = ("--device", "cpu", "--prompt-lengths", "3,4", "--ttft-iterations", "1", "--p99-iterations", "2")
FLAGS = (*TINY, "--precapture", "3,4", "--pause-ms", "400")
SAMPLES = 2 * (1 + 2)  # of a case
SLOW_S = 240.0  # torch is imported several times before the first of them, perhaps on a busy machine
MEASURED = [case.name for case in CASES if case.name != "case5_tensorrt_llm"]


class Real:
    """The real complete run in a directory of its own, each process of it marked in its environment."""

    def __init__(self, directory: Path) -> None:
        self.output = directory / "output"
        self.command = [str(ROOT / "run_complete_benchmark.sh"), *FLAGS, "--output-dir", str(self.output)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDGRAPH_")}
        self.env = clean | {"HYBRIDGRAPH_PYTHON": sys.executable, "MARK": str(directory), "TMPDIR": str(directory)}
        self.env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def start(self, *more: str) -> "subprocess.Popen[str]":
        command = [*self.command, *more]
        return subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def num_samples(self, name: str) -> int:
        path = self.output / f"{name}_samples.jsonl"
        return len(path.read_text().splitlines()) - 1 if path.exists() else 0

    def alive(self) -> dict[int, str]:
        return alive(f"MARK={self.env['MARK']}")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    run = Real(tmp_path)
    yield run
    for pid in run.alive():  # of a test that failed
        os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(1800)
def test_killed_in_any_case_nothing_is_left_within_five_seconds_and_it_can_be_resumed(real: Real) -> None:
    seed = random.randrange(10_000)
    chosen = random.Random(seed).sample(MEASURED, 2)  # all of them, one after the other, would take many minutes
    print(f"seed {seed}: killed in {chosen}")
    more: tuple[str, ...] = ()
    for name in sorted(chosen, key=MEASURED.index):
        process = real.start(*more)
        wait_for(lambda name=name: real.num_samples(name) > 0, f"a sample of {name}", timeout_s=600)
        process.kill()
        process.wait()
        wait_for(lambda: not real.alive(), "nothing is left", timeout_s=5)
        assert 0 < real.num_samples(name) < SAMPLES, "it was killed in its middle"
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
        more = ("--resume",)
    last = real.start(*more)
    said = last.communicate(timeout=600)[1]
    assert last.returncode == 0, said
    assert [real.num_samples(name) for name in MEASURED] == [SAMPLES] * len(MEASURED)
    assert (real.output / "final_ttft_table.csv").exists()
    assert [path.name for path in Path(real.env["MARK"]).glob("hybridgraph-*")] == [], "nothing is left of a socket"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "code", "phase"),
    [
        (signal.SIGINT, 130, "case1 loads"),
        (signal.SIGTERM, 143, "case1 measures"),
        (signal.SIGINT, 130, "case2 loads"),
        (signal.SIGHUP, 129, "case2 measures"),
    ],
)
def test_a_stop_signal_in_each_phase_is_told_once(real: Real, number: signal.Signals, code: int, phase: str) -> None:
    process = real.start()
    assert process.stderr is not None
    if phase == "case1 measures":
        wait_for(lambda: real.num_samples("case1_baseline") > 0, "a sample", SLOW_S)
    elif phase == "case2 measures":
        wait_for(lambda: real.num_samples("case2_async_cuda") > 0, "a sample", SLOW_S)
    else:
        begins = "== case1" if "case1" in phase else "starting case2"
        assert any(line.startswith(begins) for line in process.stderr)
    process.send_signal(number)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == code, said
    assert said.count("--resume goes on from there") == 1 and "Traceback" not in said
    assert real.alive() == {}


@pytest.mark.timeout(900)
def test_a_case_into_the_directory_of_a_complete_run_is_refused_and_the_other_way_round(real: Real) -> None:
    process = real.start()
    wait_for(lambda: real.num_samples("case1_baseline") > 0, "a sample", SLOW_S)
    case = [sys.executable, str(ROOT / "case3_jit_only.py"), *FLAGS, "--output-dir", str(real.output)]
    refused = subprocess.run(case, env=real.env, capture_output=True, text=True, timeout=240)
    assert refused.returncode == 2
    assert f"error: a complete run is writing to {real.output}: wait for it" in refused.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    assert real.num_samples("case3_jit_only") == 0
    single = subprocess.Popen(case, env=real.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: real.num_samples("case3_jit_only") > 0, "a sample", SLOW_S)
    complete = real.start()
    assert f"error: a case is being measured into {real.output}" in complete.communicate(timeout=240)[1]
    assert complete.returncode == 2
    assert single.wait(timeout=240) == 0 and real.num_samples("case3_jit_only") == SAMPLES


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self, env: dict[str, str]) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env | {"PS1": "$ "})
        os.set_blocking(self.terminal, False)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def read(self) -> bool:
        """Read what has been shown by now, so that nobody waits for the terminal."""
        with suppress(OSError):
            while piece := os.read(self.terminal, 1 << 16):
                self.shown += piece.decode(errors="replace")
        return True

    def shows(self, text: str) -> bool:
        return self.read() and text in self.shown

    def close(self) -> None:
        os.close(self.terminal)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(real: Real) -> Iterator[Terminal]:
    shell = Terminal(real.env)
    yield shell
    shell.close()


def of_the_run(run: Real) -> list[str]:
    """The states of the run's processes, without their guards and the shell."""
    marked = [(state, command) for state, command, env in processes().values() if f"MARK={run.env['MARK']}" in env]
    return [state for state, command in marked if "guard.py" not in command and "bash" not in command]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["case1_baseline", "case2_async_cuda"])
def test_ctrl_z_stops_the_case_as_well_and_fg_goes_on(real: Real, terminal: Terminal, name: str) -> None:
    terminal.type("stty tostop\n")  # whose readers stop what writes in the background
    terminal.type(" ".join(real.command) + "\n")
    wait_for(lambda: terminal.read() and real.num_samples(name) > 0, f"a sample of {name}", timeout_s=SLOW_S)
    terminal.type("\x1a")
    wait_for(lambda: terminal.shows("Stopped"), "the shell says so")
    wait_for(lambda: set(of_the_run(real)) == {"T"}, "every process is stopped")
    stopped_at = real.num_samples(name)
    assert stopped_at < SAMPLES and len(of_the_run(real)) == (3 if name == "case2_async_cuda" else 2)
    terminal.type("fg\n")
    wait_for(lambda: terminal.read() and real.num_samples(name) == SAMPLES, "it goes on")
    terminal.type("\x03")
    wait_for(lambda: terminal.shows("--resume goes on from there"), "it is told")
    wait_for(lambda: of_the_run(real) == [], "all of it has ended")
    assert "Traceback" not in terminal.shown
