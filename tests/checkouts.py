"""Checkouts whose benchmark is a stand-in, for tests of what is around it: scripts, set-up, processes."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ECHO_MAIN = "import sys\nprint('main', sys.executable, *sys.argv[1:])\n"
# The complete run is the real one; each of its steps writes its arguments down, and does what the test says.
RECORDING_MAIN = """
import os, pathlib, signal, subprocess, sys, time
root = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))
if sys.argv[1] == "study":
    from hybridgraph.cli.study import run_study
    raise SystemExit(run_study(sys.argv[2:]))
with (root / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
"""
RECORDING_TABLES = """
import pathlib, sys
with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
    calls.write("tables " + " ".join(sys.argv[1:]) + "\\n")
"""


def make_checkout(root: Path, main: str = ECHO_MAIN) -> Path:
    """A checkout whose requirements are empty, and whose ``__main__.py`` is ``main``."""
    root.mkdir(parents=True)
    for script in ROOT.glob("run_*.sh"):
        shutil.copy(script, root)
    shutil.copytree(ROOT / "hybridgraph", root / "hybridgraph", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "hybridgraph" / "__main__.py").write_text(main)
    (root / "generate_final_tables.py").write_text(RECORDING_TABLES)
    (root / "tests").mkdir()
    for name in ("requirements.txt", "constraints.txt", "tests/requirements.txt"):
        (root / name).write_text("")
    return root


def environ(**changes: str) -> dict[str, str]:
    """This environment without what is ours or Python's, where no package index is asked."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HYBRIDGRAPH_", "PYTHONPATH", "PIP_"))}
    return clean | {"PIP_NO_INDEX": "1"} | changes


def start(project: Path, script: str, *flags: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [str(project / script), *flags]
    return subprocess.run(command, cwd=project, env=environ(**env), capture_output=True, text=True, timeout=120)


def calls_of(project: Path) -> list[str]:
    path = project / "calls"
    return path.read_text().splitlines() if path.exists() else []


def stub(directory: Path, name: str, body: str) -> str:
    """An executable shell script; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def base_python() -> str:
    """An interpreter that is no environment's, so that it has no packages."""
    return str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))


def make_wheel(directory: Path, name: str) -> None:
    """An installable package of one empty module, as an index of one directory (PIP_FIND_LINKS) holds it."""
    directory.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(path, text)


def wait_for(happened: Callable[[], object], what: str = "it", timeout_s: float = 120.0) -> None:
    """Wait until ``happened()``; a condition, not a bound: it fails only where that never comes."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def processes() -> dict[int, tuple[str, str, str]]:
    """Of every process: its state, its command line and its environment's variables as one text."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state = (directory / "stat").read_text(errors="replace").rpartition(") ")[2][0]
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            variables = (directory / "environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
        except OSError:
            continue
        found[int(directory.name)] = (state, command, variables)
    return found


def alive(mark: str) -> dict[int, str]:
    """The command lines of the processes that live and have ``mark`` in their environment."""
    return {
        pid: command for pid, (state, command, variables) in processes().items() if mark in variables and state != "Z"
    }
