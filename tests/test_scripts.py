"""The shell scripts: finding Python, setting .venv up once, ending what they started."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ECHO_MAIN = "import sys\nprint('main', sys.executable, *sys.argv[1:])\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout whose requirements are empty and whose benchmark only says how it was called."""
    root = tmp_path / "checkout"
    root.mkdir()
    for script in ROOT.glob("run_*.sh"):
        shutil.copy(script, root)
    shutil.copytree(ROOT / "hybridgraph", root / "hybridgraph", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "hybridgraph" / "__main__.py").write_text(ECHO_MAIN)
    (root / "requirements.txt").write_text("")
    (root / "constraints.txt").write_text("")
    return root


def environ(**changes: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HYBRIDGRAPH_", "PYTHONPATH"))}
    return clean | {"PIP_NO_INDEX": "1"} | changes


def start(project: Path, script: str, *flags: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(project / script), *flags], cwd=project, env=environ(**env), capture_output=True, text=True, timeout=60
    )


def stub(directory: Path, name: str, body: str) -> str:
    """An executable shell script; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def only_tools(directory: Path) -> str:
    """A PATH with the usual tools and no Python."""
    directory.mkdir()
    for tool in ("bash", "env", "dirname", "basename", "cat", "cmp", "mkdir", "rm", "sed", "sleep"):
        (directory / tool).symlink_to(shutil.which(tool) or tool)
    return str(directory)


def test_first_start_sets_up_and_the_second_installs_nothing(project: Path) -> None:
    first = start(project, "run_case2_benchmark.sh", "--seed", "3", PATH=f"{Path(sys.executable).parent}:{os.defpath}")
    python = project / ".venv" / "bin" / "python"
    assert (first.returncode, first.stdout) == (0, f"main {python} pair case2 --seed 3\n"), first.stderr
    assert "setting up" in first.stderr
    (pip,) = project.glob(".venv/lib/python*/site-packages/pip")
    shutil.rmtree(pip)  # who has no pip can install nothing
    second = start(project, "run_case4_benchmark.sh")
    assert (second.returncode, second.stdout, second.stderr) == (0, f"main {python} pair case4\n", "")

    (project / "requirements.txt").write_text("rich\n")
    third = start(project, "run_case2_benchmark.sh")
    assert third.returncode == 2
    assert third.stdout == ""
    assert "error: pip could not install" in third.stderr.splitlines()[-1]
    (project / "requirements.txt").write_text("")
    fourth = start(project, "run_case2_benchmark.sh")
    assert fourth.returncode == 0, fourth.stderr
    assert "interrupted or failed: starting anew" in fourth.stderr


def test_an_interrupted_set_up_does_not_pass_for_finished(project: Path, tmp_path: Path) -> None:
    body = f"""if [ "$1 $2" = "-m venv" ]; then
        mkdir -p "$3/bin"; printf half > "$3/bin/python"
        exec {sys.executable} -c "import pathlib, time; pathlib.Path('{tmp_path}/making').touch(); time.sleep(60)"
    fi
    exec {sys.executable} "$@" """
    path = str(Path(stub(tmp_path / "bin", "python3.13", body)).parent)
    command = [str(project / "run_case2_benchmark.sh")]
    env = environ(PATH=f"{path}:{os.environ['PATH']}")
    process = subprocess.Popen(command, cwd=project, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(tmp_path / "making")
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    assert "interrupted" in process.communicate(timeout=20)[1]
    assert process.returncode == 130
    again = start(project, "run_case2_benchmark.sh")
    assert again.returncode == 0, again.stderr
    assert "interrupted or failed: starting anew" in again.stderr


def test_an_environment_of_the_users_own_is_left_alone(project: Path) -> None:
    mine = project / ".venv" / "mine"
    mine.parent.mkdir()
    mine.touch()
    run = start(project, "run_case2_benchmark.sh")
    assert (run.returncode, mine.exists()) == (2, True)
    assert "was not made by this script" in run.stderr


def test_an_existing_interpreter_is_used_as_it_is(project: Path) -> None:
    run = start(project, "run_case2_benchmark.sh", "--greedy", HYBRIDGRAPH_PYTHON=sys.executable)
    assert (run.returncode, run.stdout) == (0, f"main {sys.executable} pair case2 --greedy\n"), run.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("/nowhere/python", "error: HYBRIDGRAPH_PYTHON=/nowhere/python is no Python 3.10 or newer"),
        ("/bin/true", "error: HYBRIDGRAPH_PYTHON=/bin/true is no Python 3.10 or newer"),
        ("EMPTY", "lacks packages"),
    ],
)
def test_an_unusable_interpreter_is_one_line(project: Path, tmp_path: Path, python: str, said: str) -> None:
    if python == "EMPTY":  # isolated from what is installed
        python = stub(tmp_path / "bin", "python", f'exec {sys.executable} -S "$@"')
    run = start(project, "run_case2_benchmark.sh", HYBRIDGRAPH_PYTHON=python)
    assert run.returncode == 2
    assert said in run.stderr.splitlines()[-1]


def test_an_interpreter_may_be_named_by_a_relative_path(project: Path) -> None:
    stub(project / "bin", "python", f'exec {sys.executable} "$@"')
    run = start(project, "run_tests.sh", "tests/none.py", HYBRIDGRAPH_PYTHON="bin/../bin/python")
    assert "No such file or directory" not in run.stderr
    run = start(project, "run_case2_benchmark.sh", HYBRIDGRAPH_PYTHON="bin/python")
    assert (run.returncode, run.stdout) == (0, f"main {sys.executable} pair case2\n"), run.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python looks for modules where it is started")
def test_files_where_a_script_is_started_are_no_modules(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "hybridgraph").mkdir(parents=True)
    for name in ("argparse.py", "selectors.py", "hybridgraph/__init__.py", "hybridgraph/__main__.py"):
        (elsewhere / name).write_text("raise SystemExit('a file of the current directory was run')")
    run = subprocess.run(
        [str(project / "run_case2_benchmark.sh")], cwd=elsewhere, env=environ(HYBRIDGRAPH_PYTHON=sys.executable),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, f"main {sys.executable} pair case2\n"), run.stderr


def test_no_python_and_no_venv_are_told(project: Path, tmp_path: Path) -> None:
    tools = only_tools(tmp_path / "tools")
    none = start(project, "run_case2_benchmark.sh", PATH=tools)
    assert none.returncode == 2
    assert none.stderr.startswith("error: no Python 3.10 or newer was found") and none.stderr.count("\n") == 1
    stub(tmp_path / "tools", "python3", f'case "$*" in *ensurepip*) exit 1 ;; esac; exec {sys.executable} "$@"')
    bare = start(project, "run_case2_benchmark.sh", PATH=tools)
    assert bare.returncode == 2
    assert "python3 has no venv module" in bare.stderr and bare.stderr.count("\n") == 1
    stub(tmp_path / "tools", "python3", "exit 1")  # too old, or broken
    assert start(project, "run_case2_benchmark.sh", PATH=tools).stderr == none.stderr


@pytest.mark.parametrize("script", ["run_complete_benchmark.sh", "run_case2_benchmark.sh", "run_case4_benchmark.sh"])
def test_flags_are_read_before_anything_is_installed(project: Path, script: str) -> None:
    help_text = start(project, script, "--help")
    assert help_text.returncode == 0
    assert f"usage: {script}" in help_text.stdout and "--prompt-lengths" in help_text.stdout
    wrong = start(project, script, "--dtype", "int4")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    assert not (project / ".venv").exists()


def recording_python(tmp_path: Path, extra: str = "") -> str:
    """An interpreter that writes its arguments down and runs only what the scripts themselves ask of Python."""
    log = tmp_path / "calls"
    body = f"""case "$*" in
    -* | "") [ "$1 $2" = "-m hybridgraph" ] || exec {sys.executable} "$@" ;;
    esac
    printf '%s\\n' "$*" >> {log}
    {extra}"""
    return stub(tmp_path / "bin", "python", body)


def test_complete_run_passes_flags_and_survives_a_failing_case(project: Path, tmp_path: Path) -> None:
    fails = 'case "$*" in *case3*.py*) exit 7 ;; *"pair case2"*) exit 2 ;; esac'
    python = recording_python(tmp_path, fails)
    run = start(project, "run_complete_benchmark.sh", "--seed", "1", "--output-dir", "o p", HYBRIDGRAPH_PYTHON=python)
    calls = (tmp_path / "calls").read_text().replace(f"{project}/", "").splitlines()
    flags = "--seed 1 --output-dir o p"
    assert calls == [
        f"-m hybridgraph new-run {flags}",
        f"case1_baseline.py {flags}",
        f"-m hybridgraph pair case2 {flags}",
        f"case3_jit_only.py {flags}",
        "-m hybridgraph not-run case3_jit_only failed with exit code 7 --output-dir o p",
        f"-m hybridgraph pair case4 {flags}",
        f"-m hybridgraph pair case4 {flags} --forward fused",
        "-m hybridgraph not-run case5_tensorrt_llm not asked for: add --with-tensorrt-llm --output-dir o p",
        "generate_final_tables.py --output-dir=o p",
    ]
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "failed: case2_async_cuda case3_jit_only"


def test_nothing_is_measured_where_earlier_results_cannot_be_set_aside(project: Path, tmp_path: Path) -> None:
    python = recording_python(tmp_path, 'case "$*" in *new-run*) exit 2 ;; esac')
    assert start(project, "run_complete_benchmark.sh", HYBRIDGRAPH_PYTHON=python).returncode == 2
    assert (tmp_path / "calls").read_text() == "-m hybridgraph new-run\n", "rows of two runs would mix"


def test_a_complete_run_without_its_tables_has_failed(project: Path, tmp_path: Path) -> None:
    python = recording_python(tmp_path, 'case "$*" in *tables*) exit 2 ;; esac')
    run = start(project, "run_complete_benchmark.sh", HYBRIDGRAPH_PYTHON=python)
    assert (run.returncode, run.stderr.splitlines()[-1]) == (1, "failed: generate_final_tables")


def test_an_output_directory_may_look_like_a_flag(project: Path, tmp_path: Path) -> None:
    python = recording_python(tmp_path)
    run = start(project, "run_complete_benchmark.sh", "--output-dir=-x", HYBRIDGRAPH_PYTHON=python)
    assert run.returncode == 0, run.stderr
    assert (project / "-x").is_dir()
    assert (tmp_path / "calls").read_text().endswith("generate_final_tables.py --output-dir=-x\n")


def test_two_complete_runs_do_not_share_a_directory(project: Path, tmp_path: Path) -> None:
    waits = f'case "$*" in *case1*) while [ ! -e {tmp_path}/go ]; do sleep 0.05; done ;; esac'
    python = recording_python(tmp_path, waits)
    command = [str(project / "run_complete_benchmark.sh")]
    first = subprocess.Popen(command, cwd=project, env=environ(HYBRIDGRAPH_PYTHON=python), stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "calls")
    second = start(project, "run_complete_benchmark.sh", HYBRIDGRAPH_PYTHON=python)
    assert (second.returncode, second.stderr) == (2, "error: another complete run is writing to output\n")
    elsewhere = start(project, "run_complete_benchmark.sh", "--output-dir", "/proc/none", HYBRIDGRAPH_PYTHON=python)
    assert (elsewhere.returncode, elsewhere.stderr) == (2, "error: cannot write /proc/none\n")
    (tmp_path / "go").touch()
    assert first.wait(timeout=20) == 0
    assert (tmp_path / "calls").read_text().count("new-run") == 1
    assert start(project, "run_complete_benchmark.sh", HYBRIDGRAPH_PYTHON=python).returncode == 0


@pytest.mark.parametrize("flags", [("--forward", "fused"), ("--socket", "here"), ("--engine", "hf-static")])
def test_what_a_complete_run_decides_itself_is_no_flag_of_it(project: Path, flags: tuple[str, str]) -> None:
    run = start(project, "run_complete_benchmark.sh", *flags, HYBRIDGRAPH_PYTHON=sys.executable)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {flags[0]}: this script chooses it itself") and run.stderr.count("\n") == 1
    assert not (project / "output").exists()


def test_a_pairs_socket_is_refused_before_anything_is_installed(project: Path, tmp_path: Path) -> None:
    run = start(project, "run_case4_benchmark.sh", "--socket", "here", HYBRIDGRAPH_PYTHON=recording_python(tmp_path))
    assert run.returncode == 2 and run.stderr.startswith("error: --socket: this script chooses it itself")
    assert not (tmp_path / "calls").exists()


def test_complete_run_with_tensorrt_llm_in_an_existing_interpreter(project: Path, tmp_path: Path) -> None:
    python = recording_python(tmp_path)
    run = start(
        project, "run_complete_benchmark.sh", "--with-tensorrt-llm", "--json",
        HYBRIDGRAPH_PYTHON=python, HYBRIDGRAPH_TRTLLM_PYTHON=python,
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text().splitlines()
    assert run.returncode == 0, run.stderr
    assert f"{project}/case5_tensorrt_llm.py --json" in calls
    assert calls[-1] == f"{project}/generate_final_tables.py --output-dir=output --json"
    assert not any("not-run" in call or "--with-tensorrt-llm" in call for call in calls)


def test_tensorrt_llm_that_cannot_be_set_up_is_a_failed_case_with_its_reason(project: Path, tmp_path: Path) -> None:
    python = recording_python(tmp_path)
    stub(tmp_path / "bin", "nvidia-smi", "exit 9")
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    run = start(project, "run_complete_benchmark.sh", "--with-tensorrt-llm", HYBRIDGRAPH_PYTHON=python, PATH=path)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert run.returncode == 1
    reason = "TensorRT-LLM needs an NVIDIA GPU, and nvidia-smi finds none"
    said = run.stderr.splitlines()
    assert said[-1] == "failed: case5_tensorrt_llm"
    assert said.index(f"error: {reason}") < said.index("== case1_baseline"), "it is told before anything is measured"
    assert f"-m hybridgraph not-run case5_tensorrt_llm {reason} --output-dir output" in calls
    assert calls[-1].endswith("generate_final_tables.py --output-dir=output")


@pytest.mark.parametrize("answer", ["echo interrupted, --resume >&2; exit 130", "exit 1"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_everything_that_was_started(
    project: Path, tmp_path: Path, number: int, code: int, answer: str
) -> None:
    # Without its own trap, bash forgets an interrupt that a foreground mv outlives.
    sleeper = f"""trap '{answer}' INT
    {sys.executable} -c 'import time; time.sleep(60)' & printf '%s %s' $$ $! > {tmp_path}/pids.new
    mv {tmp_path}/pids.new {tmp_path}/pids; wait"""
    env = environ(HYBRIDGRAPH_PYTHON=recording_python(tmp_path, sleeper))
    command = [str(project / "run_complete_benchmark.sh")]
    process = subprocess.Popen(command, cwd=project, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(tmp_path / "pids")
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    assert "--resume" in said and said.count("interrupted") == 1, "told once, by the step or for it"
    assert process.returncode == code
    for pid in (tmp_path / "pids").read_text().split():
        wait_gone(int(pid))
    assert (tmp_path / "calls").read_text().count("\n") == 1, "no further case starts"


def test_the_real_entry_point_records_why_a_case_did_not_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hybridgraph", "not-run", "case5_tensorrt_llm", "not asked for"]
    subprocess.run([*command, "--output-dir", str(tmp_path)], cwd=ROOT, check=True)
    content = json.loads((tmp_path / "environment.json").read_text())
    assert content["not_run"] == {"case5_tensorrt_llm": "not asked for"}


def wait_for(path: Path, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def wait_gone(pid: int, timeout_s: float = 10.0) -> None:
    """Wait until the process is gone, or dead and only not yet collected by whoever inherited it."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2].startswith("Z"):
                return
        except FileNotFoundError:
            return
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)
