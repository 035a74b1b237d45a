"""The engine over packed weights: the same ids as over plain ones, what it says of itself, and what it refuses."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, SMALL
from transformers import AutoConfig

from hybridgraph.engine.engine import HybridEngine
from hybridgraph.errors import UserError

NEW_TOKENS = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
needs_packed = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() != (9, 0), reason="packed weights are for Hopper GPUs"
)


@pytest.fixture(params=["llama-gqa", "llama-tied", "qwen2", "qwen3"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    AutoConfig.for_model(**(SMALL | ARCHITECTURES[request.param])).save_pretrained(tmp_path)
    return tmp_path


def opened(directory: Path, **options: Any) -> HybridEngine:
    return HybridEngine.from_pretrained(
        directory,
        load_format="dummy",
        device=DEVICE,
        forward="fused",
        precapture=(8, 400),
        async_capture=False,
        **options,
    )


@pytest.mark.skipif(DEVICE == "cuda", reason="there sums differ in their last bit, on which an id may hang")
def test_packed_engine_answers_the_plain_ones_ids(directory: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    draw = random.Random(seed)
    prompts = [[draw.randrange(500) for _ in range(draw.randint(1, 400))] for _ in range(2)]
    answers = []
    for weights in ("plain", "packed"):
        with opened(directory, weights=weights) as engine:
            answers.append([list(engine.generate(prompt, NEW_TOKENS)) for prompt in prompts])
            shape = engine.info.shape
            assert engine.info.forward == ("fused" if weights == "plain" else "fused, packed weights")
            assert shape is not None and shape.weight_bits == (None if weights == "plain" else 12)
    assert answers[0] == answers[1]


@needs_packed
def test_packed_floor_counts_three_quarters_of_the_bytes(tmp_path: Path) -> None:
    AutoConfig.for_model(**(SMALL | ARCHITECTURES["llama-gqa"])).save_pretrained(tmp_path)
    sizes = []
    for weights in ("plain", "auto"):
        with opened(tmp_path, weights=weights) as engine:
            assert engine.info.shape is not None
            sizes.append(engine.info.shape.weight_bytes)
    assert sizes[1] == sizes[0] * 12 // 16


def test_packed_weights_of_float32_are_refused_and_auto_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoConfig.for_model(**(SMALL | ARCHITECTURES["llama-gqa"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--weights packed: weights of float32"):
        opened(tmp_path, weights="packed", dtype="float32")
    with opened(tmp_path, weights="auto", dtype="float32") as engine:
        assert engine.info.forward == "fused"
    assert "weights stay plain: " in capsys.readouterr().err


def test_packed_weights_without_the_fused_forward_are_refused() -> None:
    with pytest.raises(UserError, match="weights 'packed': forward 'fused' alone reads them, not 'hf'"):
        HybridEngine.from_pretrained("tiny-llama", forward="hf", weights="packed")


def test_packed_weights_of_a_quantized_file_stay_plain(smollm2: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Dequantized, its weights have more significant bits than bfloat16."""
    options: dict[str, Any] = {"device": DEVICE, "forward": "fused", "precapture": (8,), "async_capture": False}
    with HybridEngine.from_pretrained(smollm2, weights="auto", **options) as engine:
        assert engine.info.forward == "fused"
    assert "weights do not fit twelve bits" in capsys.readouterr().err
