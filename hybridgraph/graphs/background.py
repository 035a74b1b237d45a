"""The thread that captures what the policy asks for while requests are served."""

from __future__ import annotations

import sys
import threading

from hybridgraph.graphs.pool import GraphPool
from hybridgraph.progress import say

SWITCH_INTERVAL_S = 1e-4


class BackgroundCapture:
    """One daemon thread. Its errors go to the log and the counters, never to a request."""

    def __init__(self, pool: GraphPool) -> None:
        self._pool = pool
        # A capture is a tenth of a second of Python: a request's thread must get the interpreter back at once.
        self._interval_before_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._work = threading.Event()
        self._working = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="background-capture", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether the thread captures, or is about to."""
        return self._working or self._work.is_set()

    def notify(self) -> None:
        """A request was served. The thread wakes up only if the policy wants something: it takes the interpreter
        from the thread that serves, and the next request may be there already.
        """
        if self._pool.cache.has_wishes:
            self._work.set()

    def close(self) -> None:
        """Stop after the capture in progress; graphs may be freed once this returns."""
        if self._stopping:
            return
        self._stopping = True
        self._work.set()
        if threading.current_thread() is not self._thread:  # Python's collector may end a dropped engine here
            self._thread.join()
        self._work.clear()
        sys.setswitchinterval(self._interval_before_s)

    def _run(self) -> None:
        while not self._stopping:
            self._work.wait()
            self._working = True
            self._work.clear()
            while not self._stopping and (length := self._pool.next_wanted()) is not None:
                self._capture(length)
            self._working = False

    def _capture(self, length: int) -> None:
        try:
            self._pool.capture_in_background(length)
        except Exception as error:
            self._pool.give_up(length)
            say(f"background capture of length {length} failed: {error}")
