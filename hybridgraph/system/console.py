"""What a program and its user say to each other: progress and messages, results, and how an entry point ends.

Messages and progress go to standard error: bars on a terminal, nothing at all elsewhere. Results go to standard
output, which may be closed, full, or read by someone who has seen enough.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from io import TextIOWrapper
from typing import ParamSpec, TextIO

from hybridgraph.errors import AlreadyTold, UserError, one_line
from hybridgraph.system.signals import end_quietly, stop_signals_raise, told_to_stop
from hybridgraph.system.surroundings import broken_package, require_places

IMPORTING = "importing torch"  # the first stage of whatever is opened

OnProgress = Callable[[str, int, int], None]  # stage, done, total (0: unknown)


def no_op(*_: object) -> None:
    """Do nothing: a callback for those who do not listen."""


@contextmanager
def progress_bars(*, ticking: bool = False, shown: bool = True) -> Iterator[OnProgress]:
    """Yield ``advance(label, done, total)``: one bar a label, silent where standard error is no terminal.

    A new label completes those before it, and so does the end. ``ticking`` redraws the elapsed time as well, in a
    thread, which would wake up inside a measurement; ``shown``: whether anything is shown at all.
    """
    if not (shown and on_terminal()):
        yield no_op
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


class OutputLost(UserError):
    """What was to be printed could not be; whatever was measured is on disk."""


@contextmanager
def printing() -> Iterator[None]:
    """Print within it. A reader who is gone has seen enough; raises OutputLost for anything else in the way."""
    if sys.stdout is None:  # closed by whoever started this process: print does nothing
        yield
        return
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show is no failure
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        give_up(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OutputLost(f"cannot write to standard output: {error.strerror or error}") from None


_P = ParamSpec("_P")


def guarded(*, interrupted: str) -> Callable[[Callable[_P, int]], Callable[_P, int]]:
    """Decorate an entry point: what it raises for a user is told in one line, and becomes its exit code.

    ``interrupted``: what is told of Ctrl-C.
    """

    def decorate(entry: Callable[_P, int]) -> Callable[_P, int]:
        @wraps(entry)
        def told(*args: _P.args, **kwargs: _P.kwargs) -> int:
            try:
                with stop_signals_raise(signal.SIGINT):
                    require_places()
                    return entry(*args, **kwargs)
            except AlreadyTold:
                return 2
            except SystemExit:
                end_quietly()
                raise
            except BaseException as error:
                if told_to_stop() or isinstance(error, KeyboardInterrupt):
                    say(interrupted)
                    end_quietly()
                    return 130
                if (line := explained(error)) is None:
                    raise
                say(f"error: {line}")
                return 2
            finally:
                end_saying()

        return told

    return decorate


def explained(error: BaseException) -> str | None:
    """The one line that tells a user of ``error``; None where it is a fault of this program."""
    if isinstance(error, UserError):
        return one_line(error)
    if (package := broken_package(error)) is not None:
        return f"{package} cannot be imported: {one_line(error)}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "hybridgraph").startswith("hybridgraph"):
        return f"{sys.executable} has no {error.name}: use .venv/bin/python, which the shell scripts make"
    return None
