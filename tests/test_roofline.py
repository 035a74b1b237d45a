"""The floor's byte and operation counts, against models that exist."""

from dataclasses import replace
from pathlib import Path

import pytest
from architectures import ARCHITECTURES, tiny_model

from hybridgraph.models.shapes import builtin_config
from hybridgraph.roofline import ModelShape, Rates, decode_floor_ms, prefill_floor_ms, sustained_floor_ms

LLAMA = ModelShape.from_config(builtin_config("llama-2-7b") or {}, "float16")
H200 = Rates(bytes_per_s=4.21e12, flops_per_s=745e12)


def test_llama_2_7b_is_13_gigabytes() -> None:
    assert LLAMA is not None
    assert LLAMA.weight_bytes == pytest.approx(13.2e9, rel=0.01)


def test_short_prompts_are_bound_by_bandwidth_and_long_ones_by_arithmetic() -> None:
    floors = [prefill_floor_ms(LLAMA, H200, length) or 0.0 for length in (10, 100, 200, 400)]
    assert floors[0] == floors[1] == pytest.approx(3.14, rel=0.01)
    assert floors[2] == pytest.approx(3.4, rel=0.03)
    assert floors[3] == pytest.approx(6.9, rel=0.03)


def test_what_power_allows_raises_the_floor_of_long_prompts_only() -> None:
    rates = replace(H200, sustained_flops_per_s=745e12 / 2)
    floors = [sustained_floor_ms(LLAMA, rates, length) or 0.0 for length in (10, 400)]
    assert floors[0] == prefill_floor_ms(LLAMA, H200, 10)
    assert floors[1] == pytest.approx(2 * (prefill_floor_ms(LLAMA, H200, 400) or 0.0))
    assert sustained_floor_ms(LLAMA, H200, 400) is None, "not measured in runs of before"


def test_decode_reads_the_cache_too() -> None:
    near, far = decode_floor_ms(LLAMA, H200, 1), decode_floor_ms(LLAMA, H200, 513)
    assert near is not None and far is not None
    assert far - near == pytest.approx(512 * 2 * 32 * 4096 * 2 / 4.21e12 * 1e3)


def test_unknown_is_not_guessed() -> None:
    assert prefill_floor_ms(None, H200, 10) is None
    assert prefill_floor_ms(LLAMA, None, 10) is None
    assert ModelShape.from_config({"model_type": "gpt2", "n_embd": 64}, "float16") is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counted_weights_are_the_weights_held(name: str, tmp_path: Path) -> None:
    assert tiny_model(name, tmp_path).shape is not None


def test_prefill_counts_least_work() -> None:
    shape = ModelShape(
        num_layers=1, hidden_size=4, intermediate_size=8, num_heads=2, num_kv_heads=1, head_dim=2, vocab_size=10,
        bytes_per_element=4,
    )  # fmt: skip
    layer, kv, head = 4 * 4 + 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8, 2 * 4 * 2, 40
    assert shape.layer_params == layer
    # One layer, three positions: keys and values for each, everything else once, three pairs for the last query.
    assert shape.prefill_flops(3) == 2 * (3 * kv + (layer - kv) + head + 2 * 2 * 2 * 3)
