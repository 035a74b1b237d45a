"""The sign of life of a server whose thread is inside a long call: loading, compiling, capturing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Heartbeat:
    """Calls ``beat`` from a thread of its own, every ``every_s`` for as long as the server's thread is away.

    The server's thread holds ``here`` except while it is ``away``, so that ``beat`` never runs beside it. A server that
    says often enough that it is there (``seen``) is left alone: the thread then wakes up only to look at the clock.
    """

    def __init__(self, beat: Callable[[], None], *, every_s: float, hung_s: float) -> None:
        """``hung_s``: the time in one call after which there is no further beat, because such a call never returns."""
        self.here = threading.RLock()  # it may be taken where it is held: a signal can interrupt ``away`` anywhere
        self.hung_s = hung_s
        self._beat = beat
        self._every_s = every_s
        self._seen_s = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.here.acquire()
        self._thread.start()

    def seen(self) -> float:
        """Say that the server's thread is there; returns the monotonic time."""
        self._seen_s = time.monotonic()
        return self._seen_s

    @contextmanager
    def away(self) -> Iterator[None]:
        """Within this block the server's thread touches nothing that ``beat`` does, but while it holds ``here``."""
        self.here.release()
        try:
            yield
        finally:
            self.here.acquire()

    def close(self) -> None:
        """End the thread; from the server's."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            away_s = time.monotonic() - self._seen_s
            if self._every_s <= away_s < self.hung_s and self.here.acquire(blocking=False):
                try:
                    self._beat()
                finally:
                    self.here.release()
