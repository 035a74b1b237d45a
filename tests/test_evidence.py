"""What an interval rests on: launches in pairs, launches of two runs, or the quarters of the only launch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hybridgraph.cases import CASE1, CASE2, CASE4, CASES
from hybridgraph.places import PUBLISHED
from hybridgraph.report.evidence import (
    ALLOWANCE,
    NO_UNITS,
    QUARTERS,
    Evidence,
    Interval,
    TailBounds,
    Units,
    gather,
    intervals_frame,
    ratio,
    units_of,
)
from hybridgraph.report.load import load_results
from hybridgraph.report.tables import DECODE, P99, TTFT, WARM, build_table

SEED = 7


def samples(times: Mapping[int, Mapping[int, Sequence[float]]], phase: str = "p99") -> pd.DataFrame:
    """Warm samples of ``phase``, by launch and prompt length."""
    rows = [
        {"launch": launch, "prompt_length": length, "ttft_ms": time, "phase": phase, "warmth": "warm"}
        for launch, lengths in times.items()
        for length, of_length in lengths.items()
        for time in of_length
    ]
    return pd.DataFrame(rows).assign(device_ms=1.0, itl_mean_ms=2.0)


def test_units_of_several_launches_are_their_means() -> None:
    found = units_of(samples({1: {10: [1.0, 3.0], 50: [5.0]}, 2: {10: [4.0], 50: [7.0, 8.0]}}), WARM)
    assert found.basis == "launches"
    assert found.of([10]).to_dict() == {1: 2.0, 2: 4.0}
    assert found.of([10, 50]).to_dict() == {1: 3.5, 2: 5.75}
    assert found.of([10, 60]).empty


def test_units_of_p99_are_the_p99_of_each_launch() -> None:
    found = units_of(samples({n: {10: [float(n)] * 98 + [10.0 * n, 20.0 * n]} for n in (1, 2)}), P99)
    assert found.of([10]).to_dict() == {1: 10.0, 2: 20.0}


def test_units_of_one_launch_are_its_quarters_in_order() -> None:
    found = units_of(samples({1: {10: [1, 1, 2, 2, 3, 3, 4, 4], 50: [1, 2]}}), WARM)
    assert found.basis == "quarters"
    assert found.of([10]).tolist() == [1, 2, 3, 4]
    assert found.of([50]).empty, "two requests have no quarters"
    assert not found.mean([10]).is_known, "one launch cannot tell"


def test_units_of_the_protocols_mean_need_launches() -> None:
    """Its first request at each length is another one than the rest: quarters would say nothing."""
    assert units_of(samples({1: {10: [9, 1, 1, 1, 1]}}, "ttft"), TTFT) is NO_UNITS
    assert units_of(samples({1: {10: [9, 1]}, 2: {10: [7, 1]}}, "ttft"), TTFT).of([10]).tolist() == [5, 4]


def test_units_of_decoding_are_of_its_phase_alone() -> None:
    frame = pd.concat([samples({1: {10: [1] * 8}, 2: {10: [1] * 8}}), samples({1: {10: [1]}, 2: {10: [1]}}, "decode")])
    assert units_of(frame, DECODE).of([10]).tolist() == [2.0, 2.0]


def launches(*values: float) -> Units:
    return Units(pd.DataFrame({10: values}, index=range(1, len(values) + 1)), "launches")


def test_ratio_of_launches_is_taken_in_pairs_of_one_run_and_apart_of_two() -> None:
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    host, own = np.exp(random.normal(0, 0.3, 5)), random.normal(1, 0.01, 5)
    one, other = launches(*(1.1 * host * own)), launches(*host)
    paired, apart = (ratio(one, other, [10], in_pairs=in_pairs) for in_pairs in (True, False))
    expected = stats.ttest_rel(np.log(1.1 * host * own), np.log(host)).confidence_interval(0.95)
    assert (paired.low, paired.high) == pytest.approx(np.exp([expected.low, expected.high]))
    assert paired.excludes(1) and not apart.excludes(1)
    assert (paired.basis, paired.count) == ("launches", 5)


def test_ratio_of_pairs_takes_the_launches_that_both_have() -> None:
    one, other = launches(2, 2.1, 2.2, 9), launches(1, 1, 1)
    assert ratio(one, other, [10], in_pairs=True) == ratio(launches(2, 2.1, 2.2), other, [10], in_pairs=True)


def test_ratio_of_quarters_is_wider_by_the_allowance() -> None:
    one = units_of(samples({1: {10: [2.0, 2.01, 2.02, 2.03]}}), WARM)
    other = units_of(samples({1: {10: [1.0, 1.01, 1.02, 1.03]}}), WARM)
    values, reference = np.log(one.of([10])), np.log(other.of([10]))
    narrow = stats.ttest_ind(values, reference, equal_var=False).confidence_interval(0.95)
    found = ratio(one, other, [10], in_pairs=True)
    assert found.basis == "quarters" and found.count == QUARTERS
    assert found.low == pytest.approx(math.exp(narrow.low) / (1 + ALLOWANCE))
    assert found.high == pytest.approx(math.exp(narrow.high) * (1 + ALLOWANCE))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (launches(1, 2), Units(pd.DataFrame({10: [1.0, 2, 3, 4]}), "quarters")),
        (NO_UNITS, NO_UNITS),
        (launches(1, 2), launches(1)),
    ],
)
def test_ratio_of_what_rests_on_different_things_is_unknown(one: Units, other: Units) -> None:
    found = ratio(one, other, [10], in_pairs=True)
    assert not found.is_known and not found.excludes(1)


def test_interval_excludes_what_lies_outside() -> None:
    interval = Interval(0.9, 1.1, "launches", 5)
    assert interval.excludes(1.2) and interval.excludes(0.8) and not interval.excludes(1)


def test_tail_of_a_hundred_samples_has_no_upper_bound_and_says_why() -> None:
    assert TailBounds(1.0, math.nan, 100).told() == "no upper bound: 100 of 299 samples"
    assert TailBounds(1.0, math.nan, 500).told() == "no upper bound: 500 samples, slow ones in clusters"
    assert TailBounds(1.0, 2.345, 500).told() == "2.35"


def test_evidence_of_the_published_run_is_of_one_launch() -> None:
    directory = PUBLISHED / "h200"
    results = load_results(directory)
    evidence = gather(directory, results, CASES)
    assert evidence.launches == 1
    rows = results.tables["ttft"][CASE1.name]
    frame = evidence.samples[CASE1.name]
    for length, mean in rows["warm_mean_ms"].items():
        warm = frame[(frame["prompt_length"] == length) & (frame["phase"] != "decode") & (frame["warmth"] == "warm")]
        assert warm["ttft_ms"].mean() == pytest.approx(mean, rel=1e-5)
    bounds = evidence.tail(CASE4, 10)
    assert bounds is not None and bounds.told() == "no upper bound: 100 of 299 samples"
    assert bounds.lower <= results.tables["p99"][CASE4.name]["p99_ms"][10]
    # By hand it was said that these are no difference.
    lengths = list(rows.index)
    assert not ratio(evidence.of(WARM, CASE4), evidence.of(WARM, CASE2), lengths, in_pairs=True).excludes(1)
    assert ratio(evidence.of(WARM, CASE4), evidence.of(WARM, CASE1), lengths, in_pairs=True).high < 0.5


def test_evidence_leaves_out_samples_of_another_run() -> None:
    results = load_results(PUBLISHED / "h200")
    assert gather(PUBLISHED / "repeated", results, CASES).samples == {}
    assert Evidence().launches == 0 and Evidence().of(WARM, CASE1) is NO_UNITS


def test_the_allowance_covers_what_two_published_runs_of_one_code_differ_by() -> None:
    one, other = (load_results(PUBLISHED / name).tables["ttft"] for name in ("h200", "repeated"))
    with_graphs = [case for case in CASES if case.graphs != "none"]
    ratios = [other[c.name]["warm_mean_ms"] / one[c.name]["warm_mean_ms"] for c in with_graphs]
    most = max(float((values - 1).abs().max()) for values in ratios)
    assert ALLOWANCE - 0.01 < most < ALLOWANCE


def test_tables_name_a_tie_where_the_interval_holds_no_difference() -> None:
    directory = PUBLISHED / "h200"
    results = load_results(directory)
    evidence = gather(directory, results, CASES)
    by_figure, by_noise = build_table(results, P99), build_table(results, P99, evidence.alike(P99))
    rivals = [CASE2, CASE4]
    for length, row in by_figure.rows():
        assert len(by_figure.least(row, [length], rivals)) == 1
    ties = [length for length, row in by_noise.rows() if len(by_noise.least(row, [length], rivals)) == 2]
    assert ties == [150, 200, 250, 300, 350, 400], "below, captures beside the requests make CUDA Graph's tail"
    assert by_noise.frame()["winner"].tolist() == ["JIT+CUDA fused"] * 9


def test_intervals_of_one_launch_are_empty_and_of_several_are_not() -> None:
    directory = PUBLISHED / "h200"
    results = load_results(directory)
    evidence = gather(directory, results, CASES)
    table = build_table(results, WARM)
    one = intervals_frame([table, build_table(results, P99)], evidence)
    assert one["low_ms"].isna().all() and (one["launches"] == 1).all()
    of_tail = one[(one["figure"] == "p99") & (one["prompt_length"] != "")]
    assert set(of_tail["note"]) == {"no upper bound: 100 of 299 samples"}
    values = table.values[CASE4.column]
    several = Units(pd.DataFrame({n: value * np.array([0.99, 1.0, 1.01]) for n, value in values.items()}), "launches")
    frame = intervals_frame([table], Evidence({}, {WARM.key: {CASE4.name: several}}))
    found = frame[frame["case"] == CASE4.name]
    assert ((found["low_ms"] < found["value_ms"]) & (found["value_ms"] < found["high_ms"])).all()
    assert len(found) == len(values) + 1 and found["prompt_length"].iloc[-1] == ""
