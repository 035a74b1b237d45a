"""Time: of a device between two of its events, of the host between two laps; and the wait for a device."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Within it ``device`` is this thread's current one, which kernels are launched on whatever their tensors say."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class DeviceTimer:
    """Time on a device between two points of its current stream, to be read when the answer is out.

    Without a device there is none to tell.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) if device.type == "cuda" else None

    def start(self) -> None:
        if self._events:
            self._events[0].record(torch.cuda.current_stream(self._device))

    def stop(self) -> None:
        if self._events:
            self._events[1].record(torch.cuda.current_stream(self._device))

    def elapsed_ms(self) -> float | None:
        """Milliseconds from ``start`` to ``stop``; waits for the second event. None on the CPU."""
        if not self._events:
            return None
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1]))


class DeviceMark:
    """A mark behind what has been launched, and the wait for it; without a device, launched is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def mark(self) -> None:
        if self._event:
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        if self._event:
            self._event.synchronize()


class Stopwatch:
    """Milliseconds between laps."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def lap_ms(self) -> float:
        now = time.perf_counter()
        elapsed, self._at = (now - self._at) * 1e3, now
        return elapsed
