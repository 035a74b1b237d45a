"""Intervals and bounds: how sure a figure is that was measured a few times.

The unit is the launch, one start of a case's processes. Requests of one launch resemble each other far more than
requests of two (the same clocks, the same addresses, the same host beside them), so an interval over requests is too
narrow, however many there are. Between cases of one run, launches of the same number follow each other and are taken
in pairs; launches of two runs are not.

Percentiles get bounds by order statistics, which hold for any distribution (David and Nagaraja, Order Statistics,
2003, section 7.1), with requests that exceed a value in clusters counted as fewer than they are.

``tests/test_statistics.py`` compares every function with an independent calculation, and its coverage with the level.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95

Floats = NDArray[np.float64]
_UNKNOWN = math.nan


def mean_interval(values: Floats) -> tuple[Floats, Floats]:
    """The interval of the mean (Student's t) over the last axis of ``values``, one value a launch.

    Returns the lower and the upper ends, each shaped as the other axes; NaN for fewer than two launches.
    """
    if values.shape[-1] < 2:
        return _unknown(values)
    found = stats.ttest_1samp(values, 0.0, axis=-1).confidence_interval(LEVEL)
    return np.asarray(found.low), np.asarray(found.high)


def paired_ratio_interval(values: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """The interval of how many times ``reference`` a value is, over launches in pairs (t of the log ratios).

    Both are shaped (…, launches). What two launches of a pair share, such as a host that slows down, cancels out.
    Returns the lower and the upper ends; NaN for fewer than two pairs.
    """
    low, high = mean_interval(np.log(values) - np.log(reference))
    return np.exp(low), np.exp(high)


def ratio_interval(values: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """The same over launches that are no pairs, of as many as there are on each side (Welch's t of the logs).

    The shapes are (…, launches of one) and (…, launches of the other). Returns the lower and the upper ends; NaN where
    either side has fewer than two launches.
    """
    if min(values.shape[-1], reference.shape[-1]) < 2:
        return _unknown(values)
    test = stats.ttest_ind(np.log(values), np.log(reference), axis=-1, equal_var=False)
    found = test.confidence_interval(LEVEL)
    return np.exp(np.asarray(found.low)), np.exp(np.asarray(found.high))


def _unknown(values: Floats) -> tuple[Floats, Floats]:
    unknown = np.full(values.shape[:-1], _UNKNOWN)
    return unknown, unknown


def samples_needed(q: float) -> int:
    """Of how many independent samples the largest is an upper bound of the ``q``-th percentile (P99: 299)."""
    return math.ceil(math.log(1 - LEVEL) / math.log(q / 100))


def effective_samples(values: Floats, q: float) -> int:
    """As how many independent samples the last axis of ``values`` counts, in their order, for the ``q``-th percentile.

    What is looked at is whether a value belongs to twice the percentile's tail: ``n / (1 + 2 · sum of that
    indicator's autocorrelations)``, over the lags up to the first that is within the noise of ``n`` values.
    """
    n = values.shape[-1]
    beyond = values > np.sort(values)[max(math.ceil(n * (1 - 2 * (1 - q / 100))) - 1, 0)]
    centred = beyond - beyond.mean()
    variance = float(centred @ centred)
    inflation, noise = 1.0, 2 / math.sqrt(n)
    for lag in range(1, n // 4):
        correlation = float(centred[lag:] @ centred[:-lag]) / variance if variance else 0.0
        if correlation <= noise:
            break
        inflation += 2 * correlation
    return int(n / inflation)


def percentile_bounds(values: Floats, q: float) -> tuple[float, float]:
    """A lower and an upper bound of the ``q``-th percentile, each by itself at the level, of ``values`` in their order.

    Both are values that were measured; NaN where there are too few, as of fewer than 299 for the upper one of P99.
    """
    ordered, n = np.sort(values), values.shape[-1]
    independent = effective_samples(values, q)
    tail = 1 - q / 100
    # Of the independent samples, at least ``few`` and fewer than ``many`` lie above the percentile.
    few, many = (int(rank) for rank in stats.binom.ppf([1 - LEVEL, LEVEL], independent, tail))
    from_top = [count * n // independent if count else 0 for count in (few, many + 1)]
    upper = float(ordered[n - from_top[0]]) if from_top[0] else _UNKNOWN
    lower = float(ordered[n - from_top[1]]) if from_top[1] <= n else _UNKNOWN
    return lower, upper
