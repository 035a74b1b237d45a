"""Loading models: what is made, and what is told of what cannot be loaded."""

import json
from pathlib import Path

import pytest
import torch

from hybridgraph.errors import UserError
from hybridgraph.model import device_called, load_model

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


@pytest.mark.parametrize("damage", ["lacks", "truncated", "garbage", "shape"])
def test_weights_that_are_not_the_models_are_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    load("tiny-llama").save_pretrained(tmp_path)  # type: ignore[operator]
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    if damage == "lacks":
        del weights["model.layers.0.mlp.up_proj.weight"]
        save_file(weights, path, metadata={"format": "pt"})
    elif damage == "shape":
        weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
        save_file(weights, path, metadata={"format": "pt"})
    else:
        path.write_bytes(b"no safetensors at all" if damage == "garbage" else path.read_bytes()[:-1000])
    said = r"lack 1 weights, such as model.layers.0.mlp.up_proj" if damage == "lacks" else "cannot be loaded"
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path, "auto")
    assert "\n" not in str(error.value)


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("device", ["meta", "mps", "nowhere", "cuda:x"])
def test_a_device_that_no_model_is_run_on(device: str) -> None:
    with pytest.raises(UserError, match="one of cpu, cuda, cuda:N"):
        device_called(device)


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
