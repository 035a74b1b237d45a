"""Processes that this one starts: watched, signalled as a group, and gone with it, however it ends.

Each has a guard (``guard.py``) between itself and this process, and leads a process group of its own with it. So what a
terminal sends reaches this process alone, which passes on what concerns the others: Ctrl-Z stops all of them, and they
go on together. What a child started ends with that child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from hybridgraph.errors import UserError
from hybridgraph.system.console import say
from hybridgraph.system.locks import INHERITED, held

INTERRUPTED = 130  # the exit code of a process that told its user so
TOLD = 2  # the exit code of a process that told its user of a mistake
STOP_S = 30.0  # what a process is given to end by itself
_GUARD = Path(__file__).with_name("guard.py")


class Child:
    """A process that this one has started. ``code`` is its exit code, or minus a signal; None while it runs."""

    def __init__(self, process: subprocess.Popen[str], title: str) -> None:
        self._process = process  # the guard, which ends as its command does
        self._title = title

    @property
    def code(self) -> int | None:
        return self._process.returncode

    @property
    def stdout(self) -> IO[str]:
        """What it prints, where that was asked for as a pipe."""
        assert self._process.stdout is not None
        return self._process.stdout

    def await_line(self, beginning: str) -> bool:
        """Wait until it prints a line that begins so; returns whether it came to that before it ended.

        What it prints later is read and dropped: a full pipe would stop it.
        """
        if not any(line.startswith(beginning) for line in self.stdout):
            return False
        threading.Thread(target=deque, args=(self.stdout, 0), daemon=True).start()
        return True

    def send(self, *numbers: signal.Signals) -> None:
        """Send signals to its process group."""
        for number in numbers:
            if self.code is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until it and what it started have ended; returns its exit code, None where that took too long."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def end(self, number: signal.Signals = signal.SIGTERM, patience_s: float | None = STOP_S) -> int:
        """Ask it to end, wait for that, then kill it and what it started; returns its exit code.

        What is raised meanwhile, by a further stop signal for instance, makes it kill at once.
        """
        if self.code is None:
            try:
                self.send(number, signal.SIGCONT)  # one that is stopped heeds nothing else
                if self.wait(patience_s) is None:
                    say(f"{self._title} did not end within {patience_s:g} s: it is killed")
            finally:
                if self.code is None:
                    self.send(signal.SIGCONT)
                    self._process.send_signal(signal.SIGQUIT)
                    self._process.wait()
        assert self.code is not None
        return self.code


@contextmanager
def started(
    command: Sequence[str],
    *,
    title: str,
    environment: dict[str, str] | None = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
    patience_s: float | None = STOP_S,
) -> Iterator[Child]:
    """Start ``command``; when the block ends, it and what it started have ended as well.

    ``title`` is what messages call it; ``patience_s`` how long it may take to end when it is asked to. Raises UserError
    where there is no such command. The child holds the locks of this process as well.
    """
    if not os.access(command[0], os.X_OK):
        raise UserError(f"{command[0]} cannot be started: it is no executable file")
    with _stopping_together() as children:
        child = Child(_guarded(command, title, environment, stdout, pass_fds), title)
        children.append(child)
        try:
            yield child
        finally:
            child.end(patience_s=patience_s)
            children.remove(child)


def _guarded(
    command: Sequence[str], title: str, environment: dict[str, str] | None, stdout: int | None, pass_fds: Sequence[int]
) -> subprocess.Popen[str]:
    locks = held()
    variables = (os.environ if environment is None else environment) | {INHERITED: ",".join(map(str, locks))}
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            text=True,
            errors="replace",
            env=variables,
            pass_fds=(*pass_fds, *locks),
            preexec_fn=os.setpgrp,
        )
    except OSError as error:  # no more processes, or no memory for one
        raise UserError(f"{title} cannot be started: {error.strerror}") from None


_running: list[Child] = []


@contextmanager
def _stopping_together() -> Iterator[list[Child]]:
    """Stop and go on together with what is in the list: a terminal's Ctrl-Z reaches this process alone."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN:
        yield _running
        return
    before = signal.signal(signal.SIGTSTP, _stop_together)
    try:
        yield _running
    finally:
        signal.signal(signal.SIGTSTP, before)


def _stop_together(number: int, frame: FrameType | None) -> None:
    for child in _running:
        child.send(signal.SIGTSTP)
    os.kill(os.getpid(), signal.SIGSTOP)  # SIGTSTP itself is lost on a group that no shell watches
    for child in _running:
        child.send(signal.SIGCONT)


def failure(code: int) -> str:
    """What became of a process that ended with ``code``, as the end of a sentence about it."""
    if code >= 0:
        return f"failed with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    cause = "most often the machine's memory is full" if name == "SIGKILL" else "see its messages above"
    return f"was ended by {name}: {cause}"
