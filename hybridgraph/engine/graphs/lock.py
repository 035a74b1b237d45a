"""Who may use the device, the buffers and the pool: the requests, or the thread that captures beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from hybridgraph.machine.timing import on_device
from hybridgraph.system.console import no_op


class EngineLock:
    """A lock between two sides: requests, which acquire it, and captures, which acquire ``against_requests``.

    Requests may acquire it again while they have it: a lease replays, a client asks for counts in the middle of an
    answer. While they have it, ``device`` is the current one; once they have released it, ``on_release`` is called.

    No RLock: a half-read answer ends wherever Python's collector finds it, on any thread, and releases it there.
    No generator either: acquiring it is what every request waits for.
    """

    def __init__(self, device: torch.device) -> None:
        self.against_requests = threading.Lock()
        self.on_release: Callable[[], None] = no_op
        self._device = device
        self._depth = 0
        self._entered: AbstractContextManager[object] = nullcontext()

    def acquire(self) -> None:
        if self._depth == 0:
            self.against_requests.acquire()
            try:
                self._entered = on_device(self._device)  # anew: torch's forgets its device if that is changed within
                self._entered.__enter__()
            except BaseException:
                self.against_requests.release()
                raise
        self._depth += 1

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            try:
                self._entered.__exit__(None, None, None)
            finally:
                self.against_requests.release()
            self.on_release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
