"""Stop signals: of a process that serves, of one that has started another, and of the one that was started."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_S = 0.01

_Handler = Callable[[int, "FrameType | None"], None]


class Stopped(BaseException):
    """A stop signal arrived while nothing was in flight that could be finished."""


class StopSignals:
    """While entered, a stop signal is recorded, and makes ``wake`` readable."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.received_s = 0.0  # monotonic
        self._raises = False
        self.wake, self._waker = socket.socketpair()

    def __enter__(self) -> StopSignals:
        for end in (self.wake, self._waker):
            end.setblocking(False)
        self._before = _handle((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._on_signal)
        self._fd_before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.wake.close()
        self._waker.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_s = number, time.monotonic()
        if self._raises and not _put_off(number, frame):
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this block a signal raises Stopped wherever the thread is, and one that came before it at once."""
        self._raises = True
        try:
            if self.received is not None:
                raise Stopped
            yield
        finally:
            self._raises = False

    @property
    def exit_code(self) -> int:
        """By convention: asked to end, a service has succeeded; otherwise 128 + the signal."""
        return 0 if self.received in (None, signal.SIGTERM) else 128 + self.received


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process by an exception, so that what it started is ended first."""

    def leave(number: int, frame: FrameType | None) -> None:
        if not _put_off(number, frame):
            raise SystemExit(128 + number)

    before = _handle((signal.SIGTERM, signal.SIGHUP), leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(numbers: Sequence[int], handler: _Handler) -> dict[int, Any]:
    """Install ``handler``; returns the handlers before it. Under nohup, SIGHUP stays ignored."""
    wanted = [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def _put_off(number: int, frame: FrameType | None) -> bool:
    """Whether the signal is sent once more, a moment later: what is raised in a callback of an import gets lost."""
    if frame is None or not frame.f_code.co_filename.startswith("<frozen importlib"):
        return False
    again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
    return True


def how_killed(code: int) -> str:
    """What became of a process whose exit code is minus a signal."""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    cause = "most often the machine's memory is full" if name == "SIGKILL" else "see its messages above"
    return f"was ended by {name}: {cause}"


def end_with_parent(parent: int) -> None:
    """In a process that ``parent`` has just started: be told to stop (SIGTERM) when that one is gone."""
    set_parent_death_signal = 1  # prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)
