"""What each column of a row is over."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hybridgraph.bench.rows import decode_row, p99_row, ttft_row
from hybridgraph.bench.samples import Phase, Sample, Warmth
from hybridgraph.contract import SourceInfo
from hybridgraph.roofline import (
    ModelShape,
    Rates,
    decode_bytes,
    decode_floor_ms,
    prefill_floor_ms,
    sustained_floor_ms,
)

SHAPE = ModelShape(
    num_layers=2, hidden_size=8, intermediate_size=16, num_heads=2, num_kv_heads=2, head_dim=4, vocab_size=10,
    bytes_per_element=2,
)  # fmt: skip
RATES = Rates(bytes_per_s=1e9, flops_per_s=1e6, sustained_flops_per_s=1e5)
INFO = SourceInfo(
    model="none", dtype="float32", load_format="dummy", device="nothing", vocab_size=100, max_seq_len=512,
    shape=SHAPE, rates=RATES,
)  # fmt: skip


def sample(phase: Phase, warmth: Warmth, ttft_ms: float, device_ms: float, itl_ms: Sequence[float] = ()) -> Sample:
    return Sample(
        run_id="r", phase=phase, prompt_length=10, iteration=0, warmth=warmth, ttft_ms=ttft_ms, device_ms=device_ms,
        itl_ms=list(itl_ms),
    )  # fmt: skip


SAMPLES = [
    sample("ttft", "cold", 90.0, 50.0),
    sample("ttft", "first_seen", 50.0, 20.0),
    sample("ttft", "warm", 10.0, 4.0),
    sample("p99", "warm", 30.0, 8.0),
]


def test_a_ttft_row_is_over_the_samples_that_its_columns_name() -> None:
    row = ttft_row(SAMPLES, INFO)
    assert [row[n] for n in ("mean_ms", "std_ms", "cold_ms", "first_seen_ms", "warm_mean_ms")] == [50, 40, 90, 50, 20]
    assert (row["device_ms"], row["warm_samples"], row["samples"]) == (6.0, 2, 3)
    assert row["floor_ms"] == prefill_floor_ms(SHAPE, RATES, 10) != row["sustained_floor_ms"]
    assert row["sustained_floor_ms"] == sustained_floor_ms(SHAPE, RATES, 10)
    assert row["floor_ratio"] == pytest.approx(20.0 / row["floor_ms"])


def test_a_p99_row_is_over_all_of_its_samples() -> None:
    row = p99_row(SAMPLES)
    assert (row["p99_ms"], row["device_p99_ms"], row["device_mean_ms"], row["warm_samples"]) == (90.0, 50.0, 20.5, 2)


@pytest.mark.parametrize("mark", ["overflowed", "stopped"])
def test_marks_are_counted_where_somebody_looked(mark: str) -> None:
    looked = [replace(SAMPLES[0], **{mark: seen}) for seen in (True, False, True)]
    assert (p99_row(SAMPLES)[mark], p99_row([*SAMPLES, *looked])[mark]) == (None, 2)
    assert ttft_row([*SAMPLES, *looked], INFO)[mark] == 2
    answer = sample("decode", "warm", 1.0, 1.0, (2.0,))
    assert decode_row([answer, replace(answer, **{mark: True})], INFO)[mark] == 1


def test_a_decode_row_is_of_the_middle_of_the_answer() -> None:
    row = decode_row([sample("decode", "warm", 1.0, 1.0, (2.0,) * 4)], INFO)
    assert row["floor_ms"] == decode_floor_ms(SHAPE, RATES, 12)
    assert row["gb_per_s"] == pytest.approx(decode_bytes(SHAPE, 12) / 2e-3 / 1e9)


def test_each_id_attends_to_those_before_it_and_itself() -> None:
    one, three = SHAPE.prefill_flops(1), SHAPE.prefill_flops(3)
    pair = 2 * SHAPE.num_heads * SHAPE.head_dim
    assert three - one == 2 * (2 * SHAPE.layer_params + 2 * SHAPE.kv_params + pair * ((6 - 1) + (3 - 1)))
