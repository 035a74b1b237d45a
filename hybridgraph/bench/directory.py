"""Who writes to an output directory: one complete run, or single cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hybridgraph.errors import UserError
from hybridgraph.system.locks import Busy, locked

_LOCK = ".run.lock"


@contextmanager
def held_by_complete_run(directory: Path) -> Iterator[None]:
    """Keep every other run out until the block ends, and all that it has started; raises UserError where one writes."""
    busy = f"another complete run is writing to {directory}"
    with ExitStack() as holding:
        try:
            holding.enter_context(locked(directory / _LOCK, busy=busy))
        except Busy:
            with locked(directory / _LOCK, busy=busy, shared=True):  # as single cases do
                raise UserError(f"a case is being measured into {directory}: wait for it, or give another") from None
        yield


@contextmanager
def held_by_case(directory: Path) -> Iterator[None]:
    """Keep complete runs out until the block ends, but for one that has started this process itself.

    Raises UserError where another one writes there: rows of two runs would mix in its tables.
    """
    busy = f"a complete run is writing to {directory}: wait for it, or give another --output-dir"
    with locked(directory / _LOCK, busy=busy, shared=True):
        yield
