"""Which commit a number is said to come from."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASK = "from hybridgraph.machine.provenance import project_commit; print(project_commit())"


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    run = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def commit_told(directory: Path) -> str:
    run = subprocess.run([sys.executable, "-c", ASK], cwd=directory, capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "hybridgraph", root / "hybridgraph", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "output").mkdir()
    for name in ("case1_baseline.py", "output/rows.csv"):
        (root / name).write_text("")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    return root


def test_changes_anywhere_but_in_results_are_told(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    (checkout / "output" / "rows.csv").write_text("new")
    assert commit_told(checkout) == commit
    (checkout / "case1_baseline.py").write_text("changed = 1")
    assert commit_told(checkout) == f"{commit}-dirty"


def test_a_copy_inside_another_project_is_not_its_commit(checkout: Path) -> None:
    inner = checkout / "vendored"
    shutil.copytree(checkout / "hybridgraph", inner / "hybridgraph")
    assert commit_told(inner) == ""
