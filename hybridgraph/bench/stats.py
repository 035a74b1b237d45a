"""Summaries of raw samples: each figure is derived here, once."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0–100) as a value that was measured: the smallest with at least q % at or below it.

    The nearest-rank definition (method ``inverted_cdf``): no interpolation invents a tail.
    """
    if not values:
        raise ValueError("a percentile of no values")
    import numpy as np  # here: a script tells a wrong flag without it, and without what it takes to load

    return float(np.percentile(np.asarray(values), q, method="inverted_cdf"))


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of no values."""
    return fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation, or None of fewer than two values."""
    return stdev(values) if len(values) > 1 else None
