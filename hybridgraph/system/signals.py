"""Stop signals: of a process that serves, and of one that has something to end or to say before it ends."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_S = 0.01

_received: list[int] = []  # what has ended a block by an exception, or was meant to
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
        if self.received is not None:
            end_quietly()

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
def stop_signals_raise(*numbers: int) -> Iterator[None]:
    """Signals (by default SIGINT, SIGTERM and SIGHUP) end this process by an exception.

    So what it started is ended first. SIGINT raises KeyboardInterrupt, the others SystemExit. Those that are ignored
    stay ignored: SIGHUP under nohup, SIGINT of what a script has started in the background.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        _received.append(number)
        if not _put_off(number, frame):
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    numbers = numbers or (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = _handle([number for number in numbers if signal.getsignal(number) != signal.SIG_IGN], leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def told_to_stop() -> bool:
    """Whether a signal has come that was to end this process, whatever a library has made of its exception."""
    return bool(_received)


def end_quietly() -> None:
    """Let this process end without a word more: it was told to stop, perhaps in the middle of an import.

    What libraries then want to clean up at its end fails, and is nobody's to know. A further Ctrl-C ends it at once.
    """
    sys.unraisablehook = lambda unraisable: None
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


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
