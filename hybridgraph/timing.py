"""Points in a device's work, by CUDA events: the time between two, and the wait for one."""

from __future__ import annotations

import torch


class DeviceTimer:
    """Time on a device between two points of its current stream, to be read when the answer is out.

    Without a device there is none to tell.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) if device.type == "cuda" else None

    def start(self) -> None:
        if self._events:
            self._events[0].record()

    def stop(self) -> None:
        if self._events:
            self._events[1].record()

    def elapsed_ms(self) -> float | None:
        """Milliseconds from ``start`` to ``stop``; waits for the second event. None on the CPU."""
        if not self._events:
            return None
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1]))


class DeviceMark:
    """A mark behind what has been launched, and the wait for it; without a device, launched is done."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def mark(self) -> None:
        if self._event:
            self._event.record()

    def wait(self) -> None:
        if self._event:
            self._event.synchronize()
