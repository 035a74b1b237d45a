"""What surrounds a process and can break it in ways that nobody could read: told in one line, before anything else."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import traceback
from pathlib import Path

from hybridgraph.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]


def require_places() -> None:
    """Raise UserError where there is no current directory, or nowhere to put temporary files."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current directory was deleted: change to one that exists") from None
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError(
            "no temporary directory can be written, neither /tmp nor the current one: TMPDIR names one that can"
        ) from None


def require_docstrings() -> None:
    """Raise UserError where Python drops docstrings: transformers builds no model without them."""
    if sys.flags.optimize >= 2:
        raise UserError(
            "this Python drops docstrings, which transformers needs: start it without -OO, and without PYTHONOPTIMIZE=2"
        )


def broken_package(error: BaseException) -> str | None:
    """The package, with its place, whose import has raised ``error``; None where no other project's has.

    Such as a numpy on PYTHONPATH that was built for another Python.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return None if Path(error.filename).is_relative_to(PACKAGE) else error.filename
    names = [
        str(frame.f_globals.get("__name__", "")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    return _placed(names[-1]) if names and names[-1] not in ("hybridgraph", "__main__") else None


def _placed(package: str) -> str:
    path = getattr(sys.modules.get(package), "__file__", None)
    if path is None and (spec := importlib.util.find_spec(package)):
        path = spec.origin
    on_path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if path and any(Path(path).is_relative_to(Path(entry).absolute()) for entry in on_path):
        return f"{package} of PYTHONPATH ({path})"
    return f"{package} ({path})" if path else package
