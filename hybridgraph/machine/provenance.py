"""Which code made a number: the project's commit, and the versions of what it stands on."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def project_commit() -> str:
    """Return the checkout's commit, with ``-dirty`` where tracked files had changes, or may have had them.

    Outside a checkout: what ``HYBRIDGRAPH_COMMIT`` says, which whoever exported the tree may set; otherwise empty.
    """
    top = _git("rev-parse", "--show-toplevel")
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not (top and commit) or Path(top).resolve() != ROOT:  # a copy within another project is not its commit
        return os.environ.get("HYBRIDGRAPH_COMMIT", "")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!output")
    return commit + ("" if changed == "" else "-dirty")


def _git(*arguments: str) -> str | None:
    """Ask git of the project's own tree, whatever repository a hook around us is about; None where it refuses."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            env=surroundings | {"GIT_OPTIONAL_LOCKS": "0"},  # to ask changes nothing
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def versions(*packages: str) -> dict[str, str | None]:
    """Return the installed versions; None where a package is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
