"""Progress on standard error: bars on a terminal, nothing at all elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

IMPORTING = "importing torch"  # the first stage of whatever is opened

OnProgress = Callable[[str, int, int], None]  # stage, done, total (0: unknown)


def nobody(*_: object) -> None:
    """A callback nobody listens to."""


@contextmanager
def progress_bars(*, ticking: bool = False, shown: bool = True) -> Iterator[OnProgress]:
    """Yield ``advance(label, done, total)``: one bar a label, silent where standard error is no terminal.

    A new label completes those before it, and so does the end. ``ticking`` redraws the elapsed time as well, in a
    thread, which would wake up inside a measurement; ``shown``: whether anything is shown at all.
    """
    if not (shown and on_terminal()):
        yield nobody
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=ticking) as bars:
        tasks: dict[str, TaskID] = {}

        def complete() -> None:
            for task in bars.tasks:
                bars.update(task.id, completed=task.total)

        def advance(label: str, done: int, total: int) -> None:
            if label not in tasks:
                complete()
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done, total=total, refresh=True)

        yield advance
        complete()


def on_terminal() -> bool:
    """Whether somebody may be watching standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(text: str) -> None:
    """One line to a person, on standard error where there still is one: nothing ends for want of a reader."""
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")  # in one write: lines of two processes do not mix
            sys.stderr.flush()


def end_saying() -> None:
    """At a process's end: what could still not be said is given up, which would turn exit code 0 into 120."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        give_up(sys.stderr)


def give_up(stream: TextIO) -> None:
    """What ``stream`` could not write, and whatever follows, goes nowhere: Python would try again at exit, and fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
