"""The guard of one process: whatever that process started ends with it, and it ends with whoever asked for it.

    python -I -S guard.py PARENT_PID COMMAND...

A guard stands between a process and its child. Orphans below it become its own children (PR_SET_CHILD_SUBREAPER), also
those that have left the process group. The kernel wakes it when its parent is gone (PR_SET_PDEATHSIG), even if it was
stopped, since the signal is SIGCONT. It then asks the command to end, and after GRACE_S kills it and everything below.
SIGQUIT makes it kill at once. It leads the command's process group, heeds none of the group's other signals, and ends
as the command did. It is run by its path and uses the standard library only, so that it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

GRACE_S = 3.0  # within five seconds of its parent's end nothing may be left
_TICK_S = 0.05
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_HEEDED = (signal.SIGCHLD, signal.SIGCONT, signal.SIGQUIT)

_prctl = ctypes.CDLL(None).prctl


class Guard:
    """One command and everything below it. ``code`` is the command's exit code, or minus a signal; None until then."""

    def __init__(self, parent: int, command: list[str]) -> None:
        self.code: int | None = None
        self._parent = parent
        self._kill_at: float | None = None  # monotonic; None while nothing is to be killed
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
        guard = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            _become(command, guard, mask)

    def watch(self) -> None:
        """Return when the command and everything below it has ended."""
        while self._reap():
            if self.code is not None:
                self._kill_at = 0.0  # what it has left behind
            elif self._kill_at is None and os.getppid() != self._parent:
                self._kill_at = time.monotonic() + GRACE_S
                for number in (signal.SIGTERM, signal.SIGCONT):
                    os.killpg(0, number)
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                for pid in _below(os.getpid()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if self._next_signal() == signal.SIGQUIT:
                self._kill_at = 0.0

    def _reap(self) -> bool:
        """Collect who has ended; returns whether anybody is left."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._child:
                    self.code = os.waitstatus_to_exitcode(status)
        return False

    def _next_signal(self) -> int | None:
        if self._kill_at is None:
            return signal.sigwait(_HEEDED)
        heeded = signal.sigtimedwait(_HEEDED, _TICK_S)
        return heeded.si_signo if heeded else None


def _become(command: list[str], guard: int, mask: Collection[int]) -> NoReturn:
    """Turn this process, which ``guard`` has just forked, into the command."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:  # it was gone before it could be watched
        os._exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else `stty tostop` would stop it at its first message
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"error: {command[0]} cannot be started: {error.strerror}\n".encode(errors="replace"))
        os._exit(2)


def _below(pid: int) -> Iterator[int]:
    """Every process that descends from ``pid``."""
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            parent = int((directory / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
            children.setdefault(parent, []).append(int(directory.name))
    found = children.get(pid, [])
    while found:
        yield from found
        found = [below for above in found for below in children.get(above, [])]


def _die_of(number: int) -> None:
    """End this process by the signal that ended the command, without a core of its own."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


def main(parent: int, command: list[str]) -> int:
    """Run ``command`` to its end, and end as it did."""
    guard = Guard(parent, command)
    guard.watch()
    assert guard.code is not None
    if guard.code < 0:
        _die_of(-guard.code)
    return guard.code


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2:]))
