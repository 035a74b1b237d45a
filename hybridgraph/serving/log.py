"""The log of a server that many can make noise at: what repeats is counted, and no flood fills it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

WINDOW_S = 60.0
MAX_LINES = 20  # different ones in a window


class BoundedLog:
    """Writes a line once in a window of time, and at most ``MAX_LINES`` of them; counts the others.

    What was counted is told with the first line after the window, or by ``close``.
    """

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._until_s = clock() + WINDOW_S
        self._written: Counter[str] = Counter()  # lines of this window, and how often each came
        self._num_others = 0

    def __call__(self, line: str) -> None:
        """Write ``line``, or count it."""
        if self._clock() >= self._until_s:
            self.close()
            self._until_s = self._clock() + WINDOW_S
        if line in self._written:
            self._written[line] += 1
        elif len(self._written) < MAX_LINES:
            self._written[line] = 1
            self._write(line)
        else:
            self._num_others += 1

    def close(self) -> None:
        """Tell what was counted and not written."""
        for line, count in self._written.items():
            if count > 1:
                self._write(f"{line} ({count - 1} more like it)")
        if self._num_others:
            self._write(f"{self._num_others} further messages were left out")
        self._written.clear()
        self._num_others = 0
