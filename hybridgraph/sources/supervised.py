"""A measuring process of another Python environment, started, watched and ended.

The child is the same script again. It holds one end of a pipe and sends a byte at each stage and
after each request; a byte that does not come in time ends the child and what it started, and only
that. The requests themselves never pass through here: the engine lives in the child, and so do the
loop and the clock.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import astuple, dataclass
from typing import IO, Any

from hybridgraph.contract import Report, Request, SourceInfo, TokenSource
from hybridgraph.errors import UserError
from hybridgraph.system.console import on_terminal, say
from hybridgraph.system.processes import INTERRUPTED, TOLD, failure, started

# Both set in the measuring child only. SCRATCH: a directory that the parent removes, even where the child was killed.
HEARTBEAT_FD = "HYBRIDGRAPH_HEARTBEAT_FD"
SCRATCH = "HYBRIDGRAPH_SCRATCH"
TIMEOUTS = "HYBRIDGRAPH_ENGINE_TIMEOUTS_S"

_READY, _ANSWERED, _CLOSING = b"r", b"a", b"c"
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
    child started, and left in its scratch directory, is gone when this returns or raises.
    """
    with tempfile.TemporaryDirectory(prefix="hybridgraph-") as scratch, _pipe() as (beats, child_end):
        variables = os.environ | {HEARTBEAT_FD: str(child_end.fileno()), SCRATCH: scratch}
        with started(
            command, title=title, environment=variables, pass_fds=[child_end.fileno()], patience_s=_GRACE_S
        ) as child:
            child_end.close()
            try:
                _watch(beats.fileno(), title, deadlines)
            except KeyboardInterrupt:  # as on a terminal: finished rows stay
                if child.end(signal.SIGINT, deadlines.shutdown_s) != INTERRUPTED:
                    raise
            code = child.end()
    if code not in (0, TOLD, INTERRUPTED):  # the last two have said why themselves
        see = ": see its messages above" if code >= 0 else ""
        raise UserError(f"the process of {title} {failure(code)}{see}")
    return code


@contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", 0) as ours, os.fdopen(writing, "wb", 0) as theirs:
        yield ours, theirs


def _watch(beats: int, title: str, deadlines: Deadlines) -> None:
    """Return when the child has ended, and the pipe with it; raise UserError when a deadline has passed."""
    stage, allowed_s, waited_s = "start", deadlines.start_s, 0.0
    left_s = allowed_s
    while True:
        begun = time.monotonic()
        turn_s = min(left_s, _SAID_EVERY_S)
        readable, _, _ = select.select([beats], [], [], turn_s)
        if readable:
            received = os.read(beats, 1 << 16)
            if not received:
                return
            stage = "shut down" if _CLOSING in received else "answer a request"
            left_s = allowed_s = deadlines.shutdown_s if _CLOSING in received else deadlines.request_s
            continue
        left_s -= min(turn_s, time.monotonic() - begun)  # time in which all of this was stopped is nobody's
        if left_s <= 0:
            raise UserError(
                f"{title} did not {stage} within {allowed_s:g} s and was ended: see its messages above "
                f"({TIMEOUTS}=START,REQUEST,SHUTDOWN allows more)"
            )
        if stage == "start" and on_terminal():
            waited_s += turn_s
            say(f"{title} is starting: {waited_s:.0f} s")


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
