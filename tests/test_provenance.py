"""Which commit a number is said to come from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASK = "from hybridgraph.machine.provenance import project_commit; print(project_commit())"


OUTSIDE_GIT = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    run = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments],
        env=OUTSIDE_GIT,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def commit_told(directory: Path, **surroundings: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=directory,
        env=OUTSIDE_GIT | surroundings,
        capture_output=True,
        text=True,
        check=True,
    )
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
    assert commit_told(inner, HYBRIDGRAPH_COMMIT="exported") == "exported"


def test_commit_in_a_hook_of_another_repository_is_our_own(checkout: Path, tmp_path: Path) -> None:
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    git(other, "commit", "-q", "--allow-empty", "-m", "another project's")
    for surroundings in (
        {"GIT_DIR": str(other / ".git")},
        {"GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(checkout)},
        {"GIT_INDEX_FILE": str(other / ".git" / "index")},
        {"GIT_CEILING_DIRECTORIES": str(checkout), "GIT_OBJECT_DIRECTORY": str(other / ".git" / "objects")},
        {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.worktree", "GIT_CONFIG_VALUE_0": str(other)},
        {"GIT_NAMESPACE": "n", "GIT_CONFIG_PARAMETERS": "'core.bare=true'"},
    ):
        assert commit_told(checkout, **surroundings) == commit, surroundings


def test_commit_of_a_real_hook_is_our_own(checkout: Path, tmp_path: Path) -> None:
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    other, told = tmp_path / "other", tmp_path / "told"
    git(tmp_path, "init", "-q", str(other))
    hook = other / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ncd {checkout} && {sys.executable} -c '{ASK}' >{told}\n")
    hook.chmod(0o755)
    git(other, "commit", "-q", "--allow-empty", "-m", "another project's")
    assert told.read_text().strip() == commit


def test_commit_of_a_package_without_a_checkout_is_unknown(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "hybridgraph", tmp_path / "hybridgraph", ignore=shutil.ignore_patterns("__pycache__"))
    assert commit_told(tmp_path, GIT_DIR=str(ROOT / ".git")) == ""
