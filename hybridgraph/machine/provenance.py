"""Which code made a number: the project's commit, and the versions of what it stands on."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def project_commit() -> str:
    """The checkout's commit, with ``-dirty`` where tracked files had changes, or may have had them.

    Outside a checkout: what ``HYBRIDGRAPH_COMMIT`` says, which whoever exported the tree may set; otherwise empty.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True,
                text=True,
                errors="surrogateescape",
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    commit = git("rev-parse", "--short=12", "HEAD")
    if not (top and commit) or Path(top).resolve() != root:  # a copy within another project is not its commit
        return os.environ.get("HYBRIDGRAPH_COMMIT", "")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!output")
    return commit + ("" if changed == "" else "-dirty")


def versions(*packages: str) -> dict[str, str | None]:
    """Installed versions; None where a package is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
