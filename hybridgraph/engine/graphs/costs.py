"""What captures cost, however many there are: counts and quantiles of all of them, the last ones whole."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import asdict
from typing import Any

from hybridgraph.engine.graphs.capture import CaptureCost

DECODE = 0  # the decode graph's key; no prompt has this length
KEPT_WHOLE = 64  # more than the study's pool and its decode graph
KEPT_FOR_QUANTILES = 256
QUANTILES = {"p50": 0.5, "p90": 0.9, "max": 1.0}
FIGURES = ("warmup_ms", "capture_ms", "driver_mib")  # known of every capture


class CaptureCosts:
    """The costs of a pool's captures, in bounded memory.

    ``before_serving`` are those of the prefill graphs that were also run eagerly, one a length.
    """

    def __init__(self) -> None:
        self.num_captures = 0
        self.before_serving: list[CaptureCost] = []
        self._last: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._recent: deque[CaptureCost] = deque(maxlen=KEPT_FOR_QUANTILES)
        self._quantiles: dict[str, Any] | None = None  # of _recent, once asked for

    def add(self, length: int, cost: CaptureCost) -> None:
        """Take in one capture of the graph ``length``."""
        self.num_captures += 1
        if length != DECODE:
            self._recent.append(cost)
            if cost.eager_ms is not None:
                self.before_serving.append(cost)
        self._last.pop(length, None)
        self._last[length] = asdict(cost)
        if len(self._last) > KEPT_WHOLE:
            self._last.popitem(last=False)
        self._quantiles = None

    def last(self) -> dict[str, dict[str, Any]]:
        """The last captures of at most KEPT_WHOLE lengths, each whole, by length."""
        return {str(length): cost for length, cost in sorted(self._last.copy().items())}

    def quantiles(self) -> dict[str, Any]:
        """Quantiles of the prefill graphs' costs over the last KEPT_FOR_QUANTILES captures; empty without any."""
        if self._quantiles is None:
            costs = list(self._recent)
            self._quantiles = {"captures": len(costs)} if costs else {}
            for figure in FIGURES if costs else ():
                values = sorted(getattr(cost, figure) for cost in costs)
                self._quantiles[figure] = {
                    name: values[math.ceil(share * len(values)) - 1] for name, share in QUANTILES.items()
                }
        return self._quantiles
