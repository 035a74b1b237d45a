"""Who may use the buffers and the pool: the requests, or the thread that captures beside them."""

from __future__ import annotations

import threading


class Turn:
    """A lock between two sides: requests, which enter it, and captures, which take ``of_captures``.

    Requests may enter again inside of it: a lease replays, a client asks for counts in the middle of an answer.

    No RLock: a half-read answer ends wherever Python's collector finds it, on any thread, and so does its turn.
    """

    def __init__(self) -> None:
        self.of_captures = threading.Lock()
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self.of_captures.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.of_captures.release()
