"""Each interval and bound against an independent calculation, and its coverage of a truth that is known.

The samples are of launches that differ by 2 %, of 100 requests each; a request's time is symmetric, skewed or of two
kinds, and alone or like the one before (a correlation of up to 0.9, as published runs show it).
"""

import math
from collections.abc import Callable
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
from scipy import stats

from hybridgraph.report.statistics import (
    LEVEL,
    Floats,
    effective_samples,
    mean_interval,
    paired_ratio_interval,
    percentile_bounds,
    ratio_interval,
    samples_needed,
)

SEED = 20261201
REPEATS = 4000
T_4 = 2.7764451051977934  # the 97.5 % point of Student's t with 4 degrees of freedom, from printed tables


@pytest.fixture
def random(request: pytest.FixtureRequest) -> np.random.Generator:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def autocorrelated(random: np.random.Generator, shape: tuple[int, ...], correlation: float) -> Floats:
    """Standard normal values, each of which has ``correlation`` with the one before on the last axis."""
    noise = random.standard_normal(shape)
    for i in range(1, shape[-1]):
        noise[..., i] = correlation * noise[..., i - 1] + math.sqrt(1 - correlation**2) * noise[..., i]
    return noise


# Times in ms whose mean is 10, from standard normal values.
SHAPES: dict[str, Callable[[Floats], Floats]] = {
    "symmetric": lambda z: 10 + z,
    "skewed": lambda z: 10 * np.exp(0.5 * z - 0.125),
    "bimodal": lambda z: np.where(z > NormalDist().inv_cdf(0.8), 13.2, 9.2) + 0.1 * np.sin(40 * z),
}
DEPENDENCE = (0.0, 0.5, 0.9)
in_every_shape = pytest.mark.parametrize("shape", SHAPES)
in_every_order = pytest.mark.parametrize("correlation", DEPENDENCE)


def launch_means(random: np.random.Generator, shape: str, correlation: float, launches: int = 5) -> Floats:
    requests = SHAPES[shape](autocorrelated(random, (REPEATS, launches, 100), correlation))
    return requests.mean(-1) * (1 + 0.02 * random.standard_normal((REPEATS, launches)))


def coverage(interval: tuple[Floats, Floats], truth: float) -> float:
    low, high = interval
    return float(((low <= truth) & (truth <= high)).mean())


def assert_nominal(covered: float) -> None:
    print(f"covered {covered:.2%} of {REPEATS}")
    assert 0.93 <= covered <= 0.97


def test_mean_interval_of_five_launches_is_the_textbooks() -> None:
    values = [10.1, 10.3, 9.8, 10.0, 10.4]
    half = T_4 * stdev(values) / math.sqrt(5)
    assert [float(end) for end in mean_interval(np.array(values))] == pytest.approx(
        [fmean(values) - half, fmean(values) + half]
    )


def test_paired_ratio_interval_is_that_of_the_logarithms() -> None:
    a, b = [10.1, 10.3, 9.8, 10.0, 10.4], [5.2, 5.1, 5.0, 5.0, 5.3]
    logs = [math.log(x / y) for x, y in zip(a, b, strict=True)]
    half = T_4 * stdev(logs) / math.sqrt(5)
    expected = [math.exp(fmean(logs) - half), math.exp(fmean(logs) + half)]
    assert [float(end) for end in paired_ratio_interval(np.array(a), np.array(b))] == pytest.approx(expected)


def test_ratio_interval_is_welchs() -> None:
    a, b = np.log([10.1, 10.3, 9.8, 10.0, 10.4]), np.log([5.2, 5.1, 5.0])
    parts = a.var(ddof=1) / 5, b.var(ddof=1) / 3
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 2)  # Welch and Satterthwaite
    half = _t_quantile(0.975, freedom) * math.sqrt(sum(parts))
    expected = [math.exp(a.mean() - b.mean() - half), math.exp(a.mean() - b.mean() + half)]
    assert [float(end) for end in ratio_interval(np.exp(a), np.exp(b))] == pytest.approx(expected, rel=1e-6)


def _t_quantile(p: float, freedom: float) -> float:
    """By bisection of Student's density, integrated: no routine of the library under test."""
    constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        grid = np.linspace(0, middle, 20_001)
        area = np.trapezoid(constant * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2), grid)
        low, high = (middle, high) if 0.5 + area < p else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("launches", [0, 1])
def test_intervals_of_less_than_two_launches_are_unknown(launches: int) -> None:
    few, many = np.ones(launches), np.array([1.0, 2.0, 3.0])
    for low, high in (mean_interval(few), paired_ratio_interval(few, few), ratio_interval(few, many)):
        assert math.isnan(low) and math.isnan(high)


@in_every_shape
@in_every_order
def test_mean_interval_covers_the_mean_in_95_percent(
    random: np.random.Generator, shape: str, correlation: float
) -> None:
    assert_nominal(coverage(mean_interval(launch_means(random, shape, correlation)), 10))


@in_every_shape
@in_every_order
def test_ratio_intervals_cover_the_ratio_in_95_percent(
    random: np.random.Generator, shape: str, correlation: float
) -> None:
    values, reference = launch_means(random, shape, correlation) * 1.1, launch_means(random, shape, correlation)
    assert_nominal(coverage(paired_ratio_interval(values, reference), 1.1))
    assert_nominal(coverage(ratio_interval(values, reference), 1.1))


def test_paired_ratio_interval_covers_where_a_pair_shares_the_hosts_speed(random: np.random.Generator) -> None:
    values, reference = launch_means(random, "symmetric", 0), launch_means(random, "symmetric", 0)
    host = np.exp(0.1 * random.standard_normal(values.shape))
    paired = paired_ratio_interval(values * host, reference * host)
    assert_nominal(coverage(paired, 1))
    apart = ratio_interval(values * host, reference * host)
    assert np.median(paired[1] - paired[0]) < 0.5 * np.median(apart[1] - apart[0])


def test_what_was_not_chosen_covers_less(random: np.random.Generator) -> None:
    """A bootstrap over five launches, and an interval over all requests as if none were like another."""
    requests = SHAPES["symmetric"](autocorrelated(random, (REPEATS, 5, 100), 0.9))
    requests *= 1 + 0.02 * random.standard_normal((REPEATS, 5, 1))
    means = requests.mean(-1)
    drawn = means[:, random.integers(0, 5, (400, 5))].mean(-1)
    assert coverage(tuple(np.quantile(drawn, [0.025, 0.975], axis=-1)), 10) < 0.90
    assert coverage(mean_interval(requests.reshape(REPEATS, -1)), 10) < 0.70


def test_samples_needed_are_the_least_whose_largest_is_a_bound() -> None:
    assert samples_needed(99) == 299
    assert 0.99**299 <= 1 - LEVEL < 0.99**298
    assert samples_needed(50) == 5


def test_percentile_bounds_of_independent_samples_are_the_binomial_ones(random: np.random.Generator) -> None:
    for n in (299, 500, 2500):
        values = random.permutation(n).astype(float)
        while effective_samples(values, 99) < n:
            values = random.permutation(n).astype(float)
        upper = stats.quantile_test(values, p=0.99, alternative="less").confidence_interval(LEVEL).high
        lower = stats.quantile_test(values, p=0.99, alternative="greater").confidence_interval(LEVEL).low
        assert percentile_bounds(values, 99) == (lower, upper)


def test_percentile_of_a_hundred_samples_has_no_upper_bound(random: np.random.Generator) -> None:
    values = random.standard_normal(100)
    lower, upper = percentile_bounds(values, 99)
    assert math.isnan(upper) and lower in values
    assert percentile_bounds(values, 50)[1] in values


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8, 0.9])
@in_every_shape
def test_percentile_bounds_cover_the_percentile_in_95_percent(
    random: np.random.Generator, shape: str, correlation: float
) -> None:
    """Of 500 requests; where there is no bound, nothing is claimed that could be wrong."""
    normal = autocorrelated(random, (REPEATS, 500), correlation)
    times = SHAPES[shape](normal)
    truth = np.quantile(SHAPES[shape](random.standard_normal(2_000_000)), 0.99)
    low, high = np.array([percentile_bounds(row, 99) for row in times]).T
    print(f"no upper bound in {np.isnan(high).mean():.1%}")
    assert_nominal(1 - float((low > truth).mean()))
    assert_nominal(1 - float((high < truth).mean()))


def test_effective_samples_of_values_that_come_in_clusters_are_the_clusters(random: np.random.Generator) -> None:
    clustered = np.repeat(random.permutation(500), 4).astype(float)  # every value four times
    assert effective_samples(clustered, 90) == pytest.approx(500, rel=0.2)
    assert effective_samples(np.ones(300), 99) == 300, "a constant has no tail that could come in clusters"
