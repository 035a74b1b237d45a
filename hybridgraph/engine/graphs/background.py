"""The thread that captures what the policy asks for while requests are served."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch

from hybridgraph.engine.graphs.pool import GraphPool
from hybridgraph.machine.timing import on_device
from hybridgraph.system.console import no_op, say

SWITCH_INTERVAL_S = 1e-4
EXIT_S = 5.0  # what a capture is given to end by where the process does


class QuickSwitching:
    """While any thread is within ``entered``, the GIL is handed over quickly: the switch interval is process-wide."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_within = 0
        self._before_s = 0.0

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self._lock:
            if self._num_within == 0:
                self._before_s = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_INTERVAL_S)
            self._num_within += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_within -= 1
                if self._num_within == 0:
                    sys.setswitchinterval(self._before_s)


QUICK_SWITCHING = QuickSwitching()


_RUNNING: WeakSet[BackgroundCapture] = WeakSet()


@atexit.register
def _stop_all() -> None:
    """A thread still inside torch when the interpreter shuts down would crash the process."""
    for running in list(_RUNNING):
        running.stop()
        running._thread.join(EXIT_S)


class BackgroundCapture:
    """One daemon thread. Its errors go to the log and the counters, never to a request."""

    def __init__(self, pool: GraphPool, device: torch.device) -> None:
        self._pool = pool
        self._device = device
        self._work = threading.Event()
        self._working = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="background-capture", daemon=True)
        pool.lock.on_release = self.notify
        self._thread.start()
        _RUNNING.add(self)

    @property
    def busy(self) -> bool:
        """Whether the thread captures, or is about to."""
        return self._working or self._work.is_set()

    def notify(self) -> None:
        """A request was served. The thread wakes up only if the policy wants something: waking takes the GIL from
        the thread that serves, and the next request may be there already.
        """
        if self._pool.cache.has_wanted:
            self._work.set()

    def stop(self) -> None:
        """Ask it to stop after the capture in progress. For Python's collector, which must not wait for a thread."""
        self._stopping = True
        self._work.set()

    def close(self) -> None:
        """Stop after the capture in progress; graphs may be freed once this returns."""
        self.stop()
        self._thread.join()
        self._work.clear()

    def _run(self) -> None:
        # A capture is a tenth of a second of Python: a thread with a request must get the GIL back at once.
        with QUICK_SWITCHING.entered(), on_device(self._device):
            while not self._stopping:
                self._work.wait()
                self._working = True
                self._work.clear()
                while not self._stopping and (length := self._pool.next_wanted()) is not None:
                    self._capture(length)
                self._working = False
        self._pool.lock.on_release = no_op  # else a dropped engine's weights would wait for the collector

    def _capture(self, length: int) -> None:
        try:
            self._pool.capture_in_background(length)
        except Exception as error:
            self._pool.capture_failed(length)
            say(f"background capture of length {length} failed: {error}")
