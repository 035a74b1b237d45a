"""Loading models: what is made, and what is told of what cannot be loaded."""

import json
from pathlib import Path

import pytest
import torch

from hybridgraph.errors import UserError
from hybridgraph.model import load_model

CPU = torch.device("cpu")


def load(name: str | Path, load_format: str = "dummy", seed: int = 0) -> torch.nn.Module:
    return load_model(str(name), load_format=load_format, dtype="float32", device=CPU, seed=seed).module


def test_dummy_weights_are_a_function_of_the_seed() -> None:
    one, same, other = (load("tiny-llama", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_dummy_buffers_are_the_architectures_own() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from hybridgraph.shapes import builtin_config

    expected = LlamaRotaryEmbedding(LlamaConfig(**(builtin_config("tiny-llama") or {}))).inv_freq
    assert torch.equal(load("tiny-llama").model.rotary_emb.inv_freq, expected)  # type: ignore[union-attr,arg-type]


def test_real_weights_round_trip_through_safetensors(tmp_path: Path) -> None:
    saved = load("tiny-llama", seed=4)
    saved.save_pretrained(tmp_path)  # type: ignore[operator]
    again = load(tmp_path, "auto")
    assert torch.equal(saved.state_dict()["lm_head.weight"], again.state_dict()["lm_head.weight"])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no config.json"),
        ("{", "is no JSON"),
        ("[]", "not the object"),
        ("{}", "no model_type"),
        ('{"model_type": "no-such"}', "no-such"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "config.json"),
        ('{"model_type": "t5"}', "no causal language model"),
    ],
)
def test_unusable_directories(tmp_path: Path, content: str | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=complaint) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown model 'no/such'"):
        load("no/such")
    with pytest.raises(UserError, match=r"cannot be loaded|not on the hub"):
        load(tmp_path / "missing", "auto")


def test_weights_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    model = load("tiny-llama")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))  # type: ignore[union-attr,operator]
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path, "auto")
