"""Progress on standard error: bars on a terminal, nothing at all elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str, int, int], None]


@contextmanager
def progress_bars() -> Iterator[Advance]:
    """Yield ``advance(label, done, total)``: one bar a label, silent where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda label, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn by hand between requests: a thread that draws would wake up inside the measurement.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bars:
        tasks: dict[str, int] = {}

        def advance(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(bars.task_ids[tasks[label]], completed=done, total=total, refresh=True)

        yield advance


def say(text: str) -> None:
    """One line to a person, on standard error: standard output is for results."""
    sys.stderr.write(f"{text}\n")  # at once: another process may write there, and this one may be ended behind it
    sys.stderr.flush()
