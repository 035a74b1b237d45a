"""``environment.json``: what the runs of a directory were, beside their rows, and why other cases did not run."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridgraph.errors import UserError
from hybridgraph.system.files import open_regular, read_text, write_atomically, writing

ENVIRONMENT = "environment.json"
MAX_BYTES = 1 << 27


@contextmanager
def _edited(directory: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """The content of ``environment.json``, to be changed within the block by this process alone, and then written."""
    path = directory / ENVIRONMENT
    with writing(path):
        directory.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_regular(directory / ".environment.lock", os.O_RDWR | os.O_CREAT), "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = read_environment(path)
            yield content
            write_atomically(path, json.dumps(content, indent=1, sort_keys=True, default=str) + "\n")


def record_case(directory: Path, name: str, entry: dict[str, Any]) -> None:
    """Set what ran of the case ``name``; why it had not run, or no further, is forgotten."""
    with _edited(directory) as content:
        content["cases"][name] = entry
        content["not_run"].pop(name, None)
        content["ended_early"].pop(name, None)


def record_not_run(directory: Path, name: str, reason: str, *, run_id: str = "") -> None:
    """Leave word of why the case ``name`` has no results, or why its run ``run_id`` has no more of them."""
    with _edited(directory) as content:
        content["not_run"][name] = reason
        content["ended_early"][name] = run_id


def read_environment(path: Path) -> dict[str, dict[str, Any]]:
    """``cases`` (what ran), ``not_run`` (why a case has no rows, or no more) and ``ended_early``, by the case's name.

    ``ended_early`` is the run_id of the run that ended for the reason in ``not_run``; empty where none had begun.
    Empty objects where there is no file; raises UserError for another one.
    """
    content: dict[str, dict[str, Any]] = {"cases": {}, "not_run": {}, "ended_early": {}}
    try:
        content |= json.loads(read_text(path, limit=MAX_BYTES))
    except FileNotFoundError:
        return content
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is no JSON object: move it away") from None
    if not all(isinstance(section, dict) for section in content.values()):
        raise UserError(f"{path} is no environment: it needs objects 'cases' and 'not_run'; move it away")
    for name, case in content["cases"].items():
        parts = ("stats", "gpu_spent", "identity", "configuration", "source")
        if not (isinstance(case, dict) and all(isinstance(case.get(part, {}), dict) for part in parts)):
            raise UserError(f"{path} is no environment: its case {name} is no object of objects; move it away")
    return content


def known_of_run(directory: Path, name: str, run_id: str) -> dict[str, Any]:
    """What ``environment.json`` holds of the run ``run_id`` of the case ``name``; nothing of another run."""
    case: dict[str, Any] = read_environment(directory / ENVIRONMENT)["cases"].get(name, {})
    return case if case.get("identity", {}).get("run_id") == run_id else {}


def run_id_of(directory: Path, name: str) -> str:
    """The run of the case ``name`` that ``environment.json`` tells of; empty where it tells of none."""
    case: dict[str, Any] = read_environment(directory / ENVIRONMENT)["cases"].get(name, {})
    return str(case.get("identity", {}).get("run_id", ""))


def why_ended(directory: Path, name: str) -> str | None:
    """Why the last run of the case ``name`` ended early; empty where it was measured to its end, None where unknown."""
    content = read_environment(directory / ENVIRONMENT)
    if reason := content["not_run"].get(name):
        return str(reason)
    return "" if "stats" in content["cases"].get(name, {}) else None
