"""Whether a process stood still: stopped (SIGSTOP, Ctrl-Z) and continued, or asleep with its machine (suspend).

Its clocks do not tell. ``time.perf_counter`` goes on while a process is stopped, as if it had been at work, and stands
still with the machine. So the signal that continues a process is stamped, and a clock that goes on through a suspend
is compared with one that does not.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

ASLEEP_NS = 50_000_000  # two clocks read one after the other differ by less, a machine sleeps for longer


class Standstill:
    """When this process last went on, by ``time.perf_counter_ns``, since ``watch`` began; None: it never stood still.

    Reading it costs two clocks; nothing runs in between.
    """

    def __init__(self) -> None:
        self._continued_ns: int | None = None
        self._asleep_ns = _asleep_ns()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Heed SIGCONT within the block; only the main thread can, any other one heeds suspends alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGCONT, lambda *_: self._stamp())
        signal.siginterrupt(signal.SIGCONT, False)  # what waits in a library goes on waiting
        try:
            yield
        finally:
            signal.signal(signal.SIGCONT, before)

    def last_ended_ns(self) -> int | None:
        """Return when the last standstill ended, or was found to have ended."""
        if (asleep_ns := _asleep_ns()) > self._asleep_ns + ASLEEP_NS:
            self._asleep_ns = asleep_ns
            self._stamp()
        return self._continued_ns

    def _stamp(self) -> None:
        self._continued_ns = time.perf_counter_ns()


def _asleep_ns() -> int:
    """How long the machine has been suspended since it was started."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
