"""Time: of a device between two of its events, of the host between two laps; and the wait for a device."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make ``device`` current in this thread: kernels launch on the current device, not on their tensors'."""
    return torch.cuda.device(device.index) if device.type == "cuda" and _num_gpus() > 1 else nullcontext()


@cache
def _num_gpus() -> int:
    return torch.cuda.device_count()


def _event(device: torch.device, *, timed: bool) -> torch.Event | None:
    """An event that is recorded on the current device's stream, whichever that is then; None where there is no GPU.

    torch.cuda.Event would look the stream up in Python, which takes a request longer than the recording.
    """
    return torch.Event(device, enable_timing=timed) if device.type == "cuda" else None


class DeviceTimer:
    """Time on a device between two points of its current stream, to be read when the answer is out.

    Without a device there is none to tell.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before, self._after = _event(device, timed=True), _event(device, timed=True)

    def start(self) -> None:
        if self._before:
            with on_device(self._device):
                self._before.record()

    def stop(self) -> None:
        if self._after:
            with on_device(self._device):
                self._after.record()

    def elapsed_ms(self) -> float | None:
        """Milliseconds from ``start`` to ``stop``; waits for the second event. None on the CPU."""
        if not (self._before and self._after):
            return None
        self._after.synchronize()
        return float(self._before.elapsed_time(self._after))


class DeviceMark:
    """A mark after what has been launched, and the wait for it; without a device, launched is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = _event(device, timed=False)

    def mark(self) -> None:
        if self._event:
            with on_device(self._device):
                self._event.record()

    def wait(self, *, awake: bool = False) -> None:
        """``awake``: looking in Python, which keeps what runs next in the caches, and other threads waiting."""
        if self._event and awake:
            while not self._event.query():
                pass
        elif self._event:
            self._event.synchronize()


class Stopwatch:
    """Milliseconds between laps."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def lap_ms(self) -> float:
        now = time.perf_counter()
        elapsed, self._at = (now - self._at) * 1e3, now
        return elapsed
