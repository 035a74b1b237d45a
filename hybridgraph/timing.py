"""Device time by CUDA events, read only after the answer is out."""

from __future__ import annotations

import torch


class DeviceTimer:
    """Time on a device between two points of its current stream; without a device there is none to tell."""

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
