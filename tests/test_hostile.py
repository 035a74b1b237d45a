"""The set-up, a small case and the tables in surroundings that break other programs: each works, or says why in a line.

Real processes; packages come from an index of one directory. Beside each surrounding alone, some pairs are drawn anew
in every run.
"""

import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from checkouts import ROOT, base_python, environ, make_checkout, make_wheel, start

from hybridgraph.machine.threads import wait_passively_on_cpu

TINY = ("--device", "cpu", "--prompt-lengths", "3", "--ttft-iterations", "1", "--p99-iterations", "1")
PROGRAMS = ("set-up", "case", "tables")
WORKS = ""


@dataclass(frozen=True, kw_only=True)
class Surrounding:
    """What is around a program, and what is said there, by program; WORKS where nothing is."""

    name: str
    variables: Callable[[Path], dict[str, str]] = lambda directory: {}
    script: str = 'exec "$@"'  # what bash runs, with the program as its arguments; $HERE is the test's directory
    prefix: tuple[str, ...] = ()  # what bash itself is started with
    root: str = "checkout"  # where the project lies
    said: dict[str, str] = field(default_factory=dict)


def _of(**variables: str) -> Callable[[Path], dict[str, str]]:
    return lambda directory: {name: value.replace("DIR", str(directory)) for name, value in variables.items()}


def _broken_numpy(directory: Path) -> dict[str, str]:
    (directory / "broken/numpy").mkdir(parents=True, exist_ok=True)
    (directory / "broken/numpy/__init__.py").write_text("raise RuntimeError('built for another Python')")
    return {"PYTHONPATH": str(directory / "broken")}


def _pip_configuration(directory: Path) -> dict[str, str]:
    path = directory / "pip.conf"
    wheels = f"find-links = {directory}/wheels"
    path.write_text(f"[global]\n{wheels}\n[install]\ntarget = {directory}/elsewhere\nuser = yes\n")
    return {"PIP_CONFIG_FILE": str(path), "PIP_FIND_LINKS": ""}  # the latter is unset


def _constraint(directory: Path) -> dict[str, str]:
    (directory / "constraint").write_text("of-users==7\n")
    return {"PIP_CONSTRAINT": str(directory / "constraint")}


NOT_THERE = "the current directory was deleted"
BROKEN = "numpy of PYTHONPATH"
NO_TEMPORARY = "no temporary directory can be written"
NOWHERE_TO_WRITE = """
mount --bind "$HERE" /mnt && mount -t tmpfs -o ro none /tmp && mount -t tmpfs -o ro none /var/tmp || exit
arguments=("${@//"$HERE"//mnt}")
cd /proc && HERE=/mnt exec "${arguments[@]}"
"""
ON_TERMINAL = """
script --quiet --flush --return --command "stty tostop; $(printf '%q ' "$@")" /dev/null </dev/null
"""

SURROUNDINGS = [
    Surrounding(name="nothing"),
    Surrounding(name="PIP_TARGET", variables=_of(PIP_TARGET="DIR/elsewhere")),
    Surrounding(name="PIP_PREFIX", variables=_of(PIP_PREFIX="DIR/elsewhere")),
    Surrounding(name="PIP_ROOT", variables=_of(PIP_ROOT="DIR/elsewhere")),
    Surrounding(name="PIP_USER", variables=_of(PIP_USER="1", PYTHONUSERBASE="DIR/elsewhere")),
    Surrounding(name="PIP_REQUIRE_VIRTUALENV", variables=_of(PIP_REQUIRE_VIRTUALENV="1")),
    Surrounding(name="PIP_CONFIG_FILE", variables=_pip_configuration),
    Surrounding(name="PIP_CONSTRAINT", variables=_constraint),
    Surrounding(name="PIP_DRY_RUN", variables=_of(PIP_DRY_RUN="1")),
    Surrounding(name="PIP_PYTHON", variables=_of(PIP_PYTHON=base_python())),
    Surrounding(name="CDPATH", variables=_of(CDPATH=".")),
    Surrounding(name="PYTHONPATH", variables=_broken_numpy, said={"case": BROKEN, "tables": BROKEN}),
    Surrounding(name="PYTHONSAFEPATH", variables=_of(PYTHONSAFEPATH="1")),
    Surrounding(
        name="PYTHONOPTIMIZE", variables=_of(PYTHONOPTIMIZE="2"), said={"case": "drops docstrings, which transformers"}
    ),
    Surrounding(name="PYTHONWARNINGS", variables=_of(PYTHONWARNINGS="ignore", PYTHONDEVMODE="0")),
    Surrounding(name="HOME", variables=_of(HOME="/nonexistent")),
    Surrounding(name="locale", variables=_of(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")),
    Surrounding(name="umask", script='umask 077; exec "$@"'),
    Surrounding(name="colon", root="check:out", said={"set-up": "no environment where a path has a ':'"}),
    Surrounding(name="space", root="check out"),
    Surrounding(
        name="directory",
        script='mkdir "$HERE/gone" && cd "$HERE/gone" && rmdir "$HERE/gone" && exec "$@"',
        said=dict.fromkeys(PROGRAMS, NOT_THERE),
    ),
    Surrounding(
        name="temporary",
        script=NOWHERE_TO_WRITE,
        prefix=("unshare", "--mount"),
        said=dict.fromkeys(PROGRAMS, NO_TEMPORARY),
    ),
    Surrounding(name="stdin", script='exec "$@" <&-'),
    Surrounding(name="tostop", script=ON_TERMINAL),
]


def needs(surroundings: Sequence[Surrounding]) -> None:
    """Skip where this machine cannot make one of the surroundings."""
    if any(surrounding.name == "temporary" for surrounding in surroundings):
        made = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
        if made.returncode != 0:
            pytest.skip("no mount namespaces here")
    if any(surrounding.name == "tostop" for surrounding in surroundings) and shutil.which("script") is None:
        pytest.skip("no script(1) here")


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a small case."""
    output = tmp_path_factory.mktemp("results") / "output"
    run = subprocess.run(
        [sys.executable, str(ROOT / "case1_baseline.py"), *TINY, "--output-dir", str(output)],
        env=environ(CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return output


def project(directory: Path, name: str) -> Path:
    """A checkout in ``directory`` that needs one package, which is in ``directory/wheels``."""
    make_wheel(directory / "wheels", "of_users")
    make_wheel(directory / "wheels", "not_asked_for")
    root = make_checkout(directory / name)
    (root / "requirements.txt").write_text("of-users\n")
    return root


def command(program: str, directory: Path, root: str, results: Path) -> list[str]:
    """What starts ``program``, after what it needs was put into ``directory``."""
    if program == "set-up":
        return [str(project(directory, root) / "run_case2_benchmark.sh")]
    at = directory / root
    at.mkdir()
    for script in ("case1_baseline.py", "generate_final_tables.py"):
        shutil.copy(ROOT / script, at)
    shutil.copytree(ROOT / "hybridgraph", at / "hybridgraph", ignore=shutil.ignore_patterns("__pycache__"))
    if program == "case":
        return [sys.executable, str(at / "case1_baseline.py"), *TINY, "--output-dir", str(directory / "output")]
    shutil.copytree(results, directory / "output")
    return [sys.executable, str(at / "generate_final_tables.py"), "--output-dir", str(directory / "output")]


def check(program: str, surroundings: Sequence[Surrounding], directory: Path, results: Path) -> None:
    """Run ``program`` in all of ``surroundings``: it works, or says what one of them makes it say."""
    needs(surroundings)
    root = next((each.root for each in surroundings if each.root != "checkout"), "checkout")
    variables = {"PIP_FIND_LINKS": str(directory / "wheels"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    arguments = command(program, directory, root, results)
    for each in surroundings:
        variables |= each.variables(directory)
        script = directory / f"{each.name}.sh"
        script.write_text(each.script)
        arguments = [*each.prefix, "bash", str(script), *arguments]
    env = {name: value for name, value in environ(**variables, HERE=str(directory)).items() if value}
    env |= {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(arguments, cwd=directory, env=env, capture_output=True, text=True, timeout=200)
    output = run.stdout + run.stderr
    assert "Traceback" not in output, output
    said = [each.said[program] for each in surroundings if each.said.get(program, WORKS)]
    if said:
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert run.returncode == 2 and any(text in line for text in said), output
    else:
        assert run.returncode == 0, output
        assert_done(program, directory, root, output)
    assert not (directory / "elsewhere").exists()


def assert_done(program: str, directory: Path, root: str, output: str) -> None:
    if program == "set-up":
        environment = directory / root / ".venv"
        assert (environment / "stamp-user").exists() and not (environment / "incomplete").exists()
        assert len(list(environment.glob("lib/python*/site-packages/of_users.py"))) == 1
        assert f"main {environment}/bin/python pair case2" in output
    elif program == "case":
        assert (directory / "output/case1_baseline_p99.csv").exists()
    else:
        assert (directory / "output/final_ttft_table.csv").exists()


ALONE = [
    pytest.param(program, surrounding, id=f"{program}-{surrounding.name}")
    for program, surrounding in itertools.product(PROGRAMS, SURROUNDINGS)
    if program == "set-up" or not surrounding.name.startswith("PIP_")
]


@pytest.mark.parametrize(("program", "surrounding"), ALONE)
def test_a_program_works_in_a_surrounding_or_says_why_not(
    program: str, surrounding: Surrounding, tmp_path: Path, results: Path
) -> None:
    check(program, [surrounding], tmp_path, results)


@pytest.mark.parametrize("program", [*["set-up"] * 3, *["case"] * 2, *["tables"] * 2])
def test_a_program_works_in_two_surroundings_at_once(program: str, tmp_path: Path, results: Path) -> None:
    seed = random.randrange(10_000)
    pair = random.Random(seed).sample([each for each in SURROUNDINGS if each.name != "nothing"], 2)
    print(f"seed {seed}: {[each.name for each in pair]}")
    check(program, pair, tmp_path, results)


def test_the_python_behind_the_environment_may_go(tmp_path: Path) -> None:
    root = project(tmp_path, "checkout")
    index = {"PIP_FIND_LINKS": str(tmp_path / "wheels")}
    assert start(root, "run_case2_benchmark.sh", **index).returncode == 0
    for name in (root / ".venv/bin").glob("python*"):
        name.unlink()
        name.symlink_to("/nowhere/python")
    again = start(root, "run_case2_benchmark.sh", **index)
    assert again.returncode == 0, again.stderr
    assert "is gone: starting anew" in again.stderr


def test_an_installation_that_went_elsewhere_leaves_no_stamp(tmp_path: Path) -> None:
    root = project(tmp_path, "checkout")
    (root / "requirements.txt").write_text("not-asked-for  # imported as something_else\n")
    run = start(root, "run_case2_benchmark.sh", PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: pip is done, but ") and "has no something_else" in run.stderr
    assert not list((root / ".venv").glob("stamp-*"))


def test_pythonhome_of_other_software_is_not_that_of_the_environment(tmp_path: Path) -> None:
    root = project(tmp_path, "checkout")
    made = start(root, "run_case2_benchmark.sh", PIP_FIND_LINKS=str(tmp_path / "wheels"), PYTHONHOME="/nowhere")
    assert made.returncode == 0, made.stderr
    given = start(root, "run_case2_benchmark.sh", HYBRIDGRAPH_PYTHON=sys.executable, PYTHONHOME="/nowhere")
    assert given.returncode == 2 and given.stderr.count("\n") == 1
    assert "does not start with PYTHONHOME=/nowhere: unset that" in given.stderr


def old_pythons() -> list[str]:
    found = [shutil.which(f"python3.{minor}") for minor in (7, 8, 9)]
    pyenv = Path.home().glob(".pyenv/versions/3.[789].*/bin/python")
    return [path for path in (*found, *map(str, pyenv)) if path and subprocess.run([path, "-V"]).returncode == 0]


@pytest.mark.parametrize("script", ["case1_baseline.py", "generate_final_tables.py", "case4_jit_cuda_client.py"])
def test_an_old_python_is_told(script: str) -> None:
    pretend = "import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path(sys.argv[1], run_name='__main__')"
    commands = [[sys.executable, "-c", pretend], *([python] for python in old_pythons())]
    for arguments in commands:
        run = subprocess.run([*arguments, str(ROOT / script)], capture_output=True, text=True, timeout=60)
        assert (run.returncode, run.stdout) == (2, ""), run.stderr
        assert run.stderr.startswith("error: ") and run.stderr.endswith(": 3.10 or newer is needed\n")


@pytest.fixture(scope="session")
def without_locks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that makes every file system one without flock, where it is preloaded."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    directory = tmp_path_factory.mktemp("preload")
    (directory / "flock.c").write_text("#include <errno.h>\nint flock(int f, int o) { errno = ENOSYS; return -1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "flock.so", "flock.c"], cwd=directory, check=True)
    return str(directory / "flock.so")


def test_without_locks_a_run_says_so_and_a_set_up_works(tmp_path: Path, without_locks: str) -> None:
    root = project(tmp_path, "checkout")
    env = {"LD_PRELOAD": without_locks, "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    assert start(root, "run_case2_benchmark.sh", **env).returncode == 0
    for arguments in (("case1_baseline.py", *TINY), ("-m", "hybridgraph", "study", *TINY)):
        run = subprocess.run(
            [sys.executable, *arguments, "--output-dir", str(tmp_path / "output")],
            cwd=ROOT, env=environ(**env), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert run.returncode == 2
        assert run.stderr == (
            f"error: {tmp_path}/output is on a file system without locks: give a directory on another one\n"
        )


def test_two_process_namespaces_do_not_set_up_one_checkout_at_once(tmp_path: Path) -> None:
    space = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*space, "true"], capture_output=True).returncode != 0:
        pytest.skip("no process namespaces here")
    root = project(tmp_path, "checkout")
    wait = f"import time, pathlib; pathlib.Path({str(tmp_path / 'making')!r}).touch(); time.sleep(600)"
    slow = f'case "$*" in *" venv "*) exec {sys.executable} -c "{wait}" ;; esac; exec {sys.executable} "$@"'
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3.13").write_text(f"#!/bin/bash\n{slow}\n")
    (tmp_path / "bin/python3.13").chmod(0o755)
    script = str(root / "run_case2_benchmark.sh")
    env = environ(PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    first = subprocess.Popen([*space, "--kill-child", script], env=env, stderr=subprocess.DEVNULL)
    try:
        from checkouts import wait_for

        wait_for((tmp_path / "making").exists)
        second = subprocess.run([*space, script], env=env, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert "is setting up" in second.stderr
        assert (root / ".venv/incomplete").exists(), "nothing was taken from the first"
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [("cpu", None, "passive"), ("cpu", "active", "active"), ("auto", None, "passive"), ("cuda", None, None)],
)
def test_threads_wait_passively_on_a_cpu_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, device: str, before: str | None, after: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_WAIT_POLICY", before) if before else monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    wait_passively_on_cpu(device)
    assert os.environ.get("OMP_WAIT_POLICY") == after
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_the_environment_file_says_how_threads_wait(results: Path) -> None:
    assert '"omp_wait_policy": "passive"' in (results / "environment.json").read_text()
