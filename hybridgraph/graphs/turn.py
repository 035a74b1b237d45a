"""Who may use the buffers and the pool: the requests, or the thread that captures beside them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """A lock between two sides. Requests may take their turn again inside of it: a lease replays, a client asks for
    counts in the middle of an answer.

    No RLock: a half-read answer ends wherever Python's collector finds it, on any thread, and so does its turn.
    """

    def __init__(self) -> None:
        self._taken = threading.Lock()
        self._depth = 0

    @contextmanager
    def of_requests(self) -> Iterator[None]:
        if self._depth == 0:
            self._taken.acquire()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._taken.release()

    @contextmanager
    def of_captures(self) -> Iterator[None]:
        with self._taken:
            yield
