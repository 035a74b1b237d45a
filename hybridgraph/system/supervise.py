"""A measuring process of another Python environment, started, watched and ended.

The child is the same script again, in a session of its own. It holds one end of a pipe and sends
a byte at each stage and after each request; a byte that does not come in time ends the child's
process group, and only that. The requests themselves never pass through here: the engine lives in
the child, and so do the loop and the clock.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

from hybridgraph.contract import Report, Request, SourceInfo, TokenSource
from hybridgraph.errors import UserError
from hybridgraph.system.console import on_terminal, say
from hybridgraph.system.signals import end_with_parent, how_killed, stop_signals_raise

# Both set in the measuring child only. SCRATCH: a directory that the parent removes, even where the child was killed.
HEARTBEAT_FD = "HYBRIDGRAPH_HEARTBEAT_FD"
SCRATCH = "HYBRIDGRAPH_SCRATCH"
TIMEOUTS = "HYBRIDGRAPH_ENGINE_TIMEOUTS_S"

INTERRUPTED = 130  # the exit code of a process that told its user so
_READY, _ANSWERED, _CLOSING = b"r", b"a", b"c"
_TICK_S = 0.2
_SAID_EVERY_S = 5.0  # that an engine is still starting: a bar would not survive between its own messages
_GRACE_S = 5.0  # between asking a group to end and killing it


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds between two signs of life of the child, before it counts as hung."""

    start_s: float = 1800.0  # load, compile, tune and capture
    request_s: float = 300.0  # with what lies between two: a pause, a row written
    shutdown_s: float = 60.0

    @classmethod
    def from_environment(cls) -> Deadlines:
        """The defaults, or ``HYBRIDGRAPH_ENGINE_TIMEOUTS_S=START,REQUEST,SHUTDOWN``."""
        text = os.environ.get(TIMEOUTS)
        if text is None:
            return cls()
        try:
            start_s, request_s, shutdown_s = (float(part) for part in text.split(","))
        except ValueError:
            raise UserError(f"{TIMEOUTS}={text}: three numbers of seconds, such as 1800,300,60") from None
        deadlines = cls(start_s=start_s, request_s=request_s, shutdown_s=shutdown_s)
        if not all(0 < seconds < 1e6 for seconds in astuple(deadlines)):
            raise UserError(f"{TIMEOUTS}={text}: each is above 0 and below a million seconds")
        return deadlines


def is_child() -> bool:
    """Whether this process is the measuring child."""
    return HEARTBEAT_FD in os.environ


def run_supervised(command: Sequence[str], *, title: str, deadlines: Deadlines) -> int:
    """Run ``command`` to its end as the measuring child; returns its exit code.

    Raises UserError where it hung, was killed or failed without a word of its own. Whatever the
    child started in its process group, and left in its scratch directory, is gone when this returns or raises.
    """
    with tempfile.TemporaryDirectory(prefix="hybridgraph-") as scratch:
        return _run(command, title, deadlines, scratch)


def _run(command: Sequence[str], title: str, deadlines: Deadlines, scratch: str) -> int:
    beats, child_end = os.pipe()
    try:
        process = subprocess.Popen(
            command,
            env=os.environ | {HEARTBEAT_FD: str(child_end), SCRATCH: scratch},
            pass_fds=(child_end,),
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
    except OSError as error:
        os.close(beats)
        raise UserError(f"{command[0]} cannot be started: {error.strerror or error}") from None
    finally:
        os.close(child_end)
    group = _Group(process, beats)
    try:
        with stop_signals_raise():
            group.watch(title, deadlines)
    except KeyboardInterrupt:
        group.end(signal.SIGINT, deadlines.shutdown_s)  # as on a terminal: finished rows stay
        if process.returncode != INTERRUPTED:
            raise
    finally:
        group.end(signal.SIGTERM, _GRACE_S)
        os.close(beats)
    return _exit_code(process.returncode, title)


class _Group:
    """The child and what it started. The group's id stays ours until the child is reaped, at the very end."""

    def __init__(self, process: subprocess.Popen[bytes], beats: int) -> None:
        self._process = process
        self._beats = beats
        self._at_end = False  # no process holds the pipe's other end any more

    def watch(self, title: str, deadlines: Deadlines) -> None:
        """Return when the child has ended; raise UserError when a deadline has passed."""
        stage, allowed_s = "start", deadlines.start_s
        begun = said = time.monotonic()
        until = begun + allowed_s
        while not self._has_ended():
            beats = self._read(_TICK_S)
            if beats:
                stage = "shut down" if _CLOSING in beats else "answer a request"
                allowed_s = deadlines.shutdown_s if _CLOSING in beats else deadlines.request_s
                until = time.monotonic() + allowed_s
            elif stage == "start" and on_terminal() and time.monotonic() > said + _SAID_EVERY_S:
                said = time.monotonic()
                say(f"{title} is starting: {said - begun:.0f} s")
            elif time.monotonic() > until:
                raise UserError(
                    f"{title} did not {stage} within {allowed_s:g} s and was ended: see its messages above "
                    f"({TIMEOUTS}=START,REQUEST,SHUTDOWN allows more)"
                )

    def end(self, number: signal.Signals, grace_s: float) -> None:
        """Ask the group to end, kill what is left of it, and reap the child."""
        if self._process.returncode is not None:
            return
        self._signal(number)
        until = time.monotonic() + grace_s
        try:
            while not self._has_ended() and time.monotonic() < until:
                self._read(_TICK_S / 4)
        finally:  # at once where another signal comes
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _has_ended(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT  # not reaped: its id must not become another's yet
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read(self, timeout_s: float) -> bytes:
        readable, _, _ = select.select([] if self._at_end else [self._beats], [], [], timeout_s)
        data = os.read(self._beats, 1 << 16) if readable else b""
        self._at_end = self._at_end or (bool(readable) and not data)
        return data


def _exit_code(code: int, title: str) -> int:
    if code < 0:
        raise UserError(f"the process of {title} {how_killed(code)}")
    if code not in (0, 2, INTERRUPTED):  # the last two have said why themselves
        raise UserError(f"the process of {title} failed with exit code {code}: see its messages above")
    return code


class SupervisedSource:
    """A source of the measuring child: tells the parent that it lives, always after the clock has stopped."""

    def __init__(self, open_inner: Callable[[], TokenSource]) -> None:
        self._heartbeat = int(os.environ.pop(HEARTBEAT_FD))
        os.set_inheritable(self._heartbeat, False)
        _engine_output_to_stderr()
        with redirect_stdout(sys.stderr):
            self._inner = open_inner()
        self._beat(_READY)

    @property
    def info(self) -> SourceInfo:
        return self._inner.info

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        report = self._inner.stream(request, emit)
        self._beat(_ANSWERED)
        return report

    def stats(self) -> dict[str, Any]:
        return self._inner.stats()

    def close(self) -> None:
        with suppress(UserError):
            self._beat(_CLOSING)
        with redirect_stdout(sys.stderr):
            self._inner.close()

    def _beat(self, stage: bytes) -> None:
        try:
            os.write(self._heartbeat, stage)
        except BrokenPipeError:
            raise UserError("the process that started this measurement is gone") from None


def _engine_output_to_stderr() -> None:
    """Point file descriptor 1 at standard error, for what an engine's libraries and workers print.

    ``sys.stdout`` goes on to where it went: standard output holds results, and their JSON as its last line.
    """
    if sys.stdout is None:
        return  # closed: the descriptor may be another file's by now
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = results
