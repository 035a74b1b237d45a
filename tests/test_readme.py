"""The README against the software: its flags, its file tree, and its own commands, run on the CPU."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybridgraph.config import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Later flags win over the README's own: small enough for a CPU, and away from output/.
SMALL = "--device cpu --prompt-lengths 4,9 --ttft-iterations 2 --p99-iterations 2 --precapture 4-10:2 --max-seq-len 64"


def blocks(info: str) -> list[str]:
    """The fenced blocks that open with exactly ``info``."""
    return re.findall(rf"^```{re.escape(info)}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash run") for line in block.splitlines() if line]


def documented_tree() -> tuple[set[str], set[str]]:
    """The names at the top level and those in the package, as the README's tree has them."""
    (tree,) = blocks("tree")
    top, package = set(), set()
    for line in tree.splitlines():
        (package if line.startswith("    ") else top).add(line.split()[0].rstrip("/"))
    return top, package


def names_in(directory: Path) -> set[str]:
    """What a clean checkout has there: nothing hidden, nothing generated, no empty directories."""
    generated = {"__pycache__", "build"}
    return {
        path.name
        for path in directory.iterdir()
        if not path.name.startswith((".", "__init__.")) and path.name not in generated and path.suffix != ".egg-info"
        if path.is_file() or any(child.is_file() and child.suffix != ".pyc" for child in path.rglob("*"))
    }


def test_the_tree_is_the_files() -> None:
    top, package = documented_tree()
    assert top - {"output"} == names_in(ROOT) - {"output"}
    assert package == names_in(ROOT / "hybridgraph")


def test_the_flag_table_is_the_configuration() -> None:
    flags = {s.argument(not s.default) if isinstance(s.default, bool) else s.flag for s in SETTINGS.values()}
    documented = re.findall(r"^\| `(--[a-z0-9-]+)` \|", README, flags=re.MULTILINE)
    assert set(documented) == flags
    assert len(documented) == len(flags)


def test_the_table_names_the_defaults() -> None:
    for setting in SETTINGS.values():
        if isinstance(setting.default, int | float | str) and not isinstance(setting.default, bool):
            row = re.search(rf"^\| `{setting.flag}` \| ([^|]*) \|", README, flags=re.MULTILINE)
            assert row is not None
            assert row[1].strip().strip("`") == str(setting.default), setting.name


def test_every_script_is_mentioned() -> None:
    for script in (*ROOT.glob("*.py"), *ROOT.glob("*.sh")):
        assert script.name in README


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "docs/results.md", "hybridgraph/kernels/README.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("command", commands())
def test_its_commands_run(command: str, tmp_path: Path) -> None:
    output, flags = tmp_path / "output", SMALL
    if "generate_final_tables" in command:
        shutil.copytree(ROOT / "output" / "published" / "h200", output)  # the published results
        flags = ""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDGRAPH_")}
    env = clean | {
        "HYBRIDGRAPH_PYTHON": sys.executable,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # `python` is this one
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    arguments = [*shlex.split(command), *shlex.split(flags), "--output-dir", str(output)]
    started_ns = time.time_ns()
    run = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    written = {path.name for path in output.glob("*.csv") if path.stat().st_mtime_ns > started_ns - 10**9}
    if "generate_final_tables" in command or "complete" in command:
        assert {"final_ttft_table.csv", "final_p99_table.csv"} <= written
    if "generate_final_tables" not in command:
        assert any(name.startswith("case") and name.endswith("_p99.csv") for name in written)


@pytest.mark.parametrize("code", blocks("python run"))
def test_its_python_runs(code: str) -> None:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[")


def test_there_is_something_to_run() -> None:
    assert "./run_complete_benchmark.sh" in commands()
    assert len(commands()) >= 6
    assert blocks("python run")
