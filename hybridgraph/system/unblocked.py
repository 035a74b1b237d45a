"""A standard stream whose writers never wait for its reader.

Whoever reads a service's messages may stop: a pipe that nobody empties, a terminal halted by Ctrl-S. A write would
then wait for as long as they please. Here a thread waits in its place; it sleeps while there is nothing to write.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

MAX_KEPT_BYTES = 1 << 16  # of text that could not be written yet
DRAIN_S = 0.5  # what a reader is given to take the last messages


class UnblockedStream(io.TextIOBase):
    """A text stream in the place of ``stream``: ``write`` returns at once, whatever the reader does.

    Text beyond ``max_kept_bytes`` that was not written yet is left out, and the number of its lines told where
    writing goes on. What can no longer be written at all goes nowhere: nothing ends for want of a reader.
    """

    def __init__(self, stream: TextIO, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        """Raise OSError or ValueError where ``stream`` is closed, or no file of the operating system's."""
        self._stream = stream
        self._descriptor = stream.fileno()
        self._max_kept_bytes = max_kept_bytes
        self._kept: deque[bytes] = deque()
        self._num_bytes = 0  # kept, or being written
        self._num_left_out = 0  # lines
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._write_all, name="unblocked-stream", daemon=True)
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Keep ``text`` to be written, or leave it out where too much is kept already; returns its length."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            if self._num_bytes + len(data) > self._max_kept_bytes:
                self._num_left_out += max(1, text.count("\n"))
            elif data:
                self._keep(self._left_out() + data)
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread is writing already."""

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Wait until everything is written, then end the thread; returns False where it took too long."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            while self._num_bytes and (left_s := until_s - time.monotonic()) > 0:
                self._changed.wait(left_s)
            if self._num_bytes:
                return False
            self._closing = True
            self._keep(self._left_out())
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _keep(self, data: bytes) -> None:
        self._kept.append(data)
        self._num_bytes += len(data)
        self._changed.notify_all()

    def _left_out(self) -> bytes:
        """What is told of text that had to be left out, once."""
        count, self._num_left_out = self._num_left_out, 0
        return f"({count} lines were left out: nobody read them)\n".encode() if count else b""

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._kept:
                    self._changed.wait()
                data = self._kept.popleft()
            _write(self._descriptor, data)
            with self._changed:
                self._num_bytes -= len(data)
                self._changed.notify_all()
                if self._closing and not self._kept:
                    return


def _write(descriptor: int, data: bytes) -> None:
    """Write ``data`` whole, however long that takes; what cannot be written goes nowhere."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever shares the file made it non-blocking
            select.select([], [descriptor], [])
        except OSError:
            return


@contextmanager
def unblocked(name: Literal["stderr", "stdout"]) -> Iterator[None]:
    """Put an UnblockedStream in the place of ``sys.stderr`` or ``sys.stdout`` until the block ends.

    It stays in place where its reader does not take the last messages in time: a later one must not wait either.
    """
    before: TextIO | None = getattr(sys, name)
    try:
        if before is None:
            raise ValueError("closed by whoever started this process")
        before.flush()
        stream = UnblockedStream(before)
    except (OSError, ValueError):  # closed, or no file of the system's: writing to it waits for nobody
        yield
        return
    setattr(sys, name, stream)
    try:
        yield
    finally:
        if stream.drain():
            setattr(sys, name, before)
