"""Who may use the device, the buffers and the pool: the requests, or the thread that captures beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from hybridgraph.machine.timing import on_device
from hybridgraph.system.console import nobody


class Turn:
    """A lock between two sides: requests, which enter it, and captures, which take ``of_captures``.

    Requests may enter again inside of it: a lease replays, a client asks for counts in the middle of an answer.
    While they are within, ``device`` is the current one; whenever they have left, ``on_leave`` is called.

    No RLock: a half-read answer ends wherever Python's collector finds it, on any thread, and so does its turn.
    No generator either: entering is what every request waits for.
    """

    def __init__(self, device: torch.device) -> None:
        self.of_captures = threading.Lock()
        self.on_leave: Callable[[], None] = nobody
        self._device = device
        self._depth = 0
        self._entered: AbstractContextManager[object] = nullcontext()

    def __enter__(self) -> None:
        if self._depth == 0:
            self.of_captures.acquire()
            try:
                self._entered = on_device(self._device)  # anew: torch's forgets its device if that is changed within
                self._entered.__enter__()
            except BaseException:
                self.of_captures.release()
                raise
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            try:
                self._entered.__exit__(None, None, None)
            finally:
                self.of_captures.release()
            self.on_leave()
