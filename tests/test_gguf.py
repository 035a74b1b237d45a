"""GGUF files that scale their rotary frequencies: applied, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import SMALL
from transformers import LlamaForCausalLM

from hybridgraph.errors import UserError
from hybridgraph.models.loading import load_model

gguf = pytest.importorskip("gguf")
CPU = torch.device("cpu")
LLAMA = SMALL | {"model_type": "llama", "num_hidden_layers": 1, "num_key_value_heads": 4}
HALF_HEAD = LLAMA["hidden_size"] // LLAMA["num_attention_heads"] // 2  # type: ignore[operator]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name.replace("model.layers.", "blk.")


def pairs_apart(weight: torch.Tensor) -> torch.Tensor:
    """Rows of queries or keys in the order of GGUF files, which rotate neighbours and not halves."""
    heads = int(LLAMA["num_attention_heads"])  # type: ignore[call-overload]
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    directory = tmp_path_factory.mktemp("llama")
    (directory / "config.json").write_text(json.dumps(LLAMA))
    return load_model(str(directory), load_format="dummy", dtype="float32", device=CPU, seed=1).module  # type: ignore[return-value]


def written(module: LlamaForCausalLM, path: Path, add: Callable[["gguf.GGUFWriter"], None]) -> Path:
    """``module`` as a GGUF file at ``path``, with what ``add`` adds."""
    config = module.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(2 * HALF_HEAD)
    writer.add_vocab_size(config.vocab_size)
    add(writer)
    for name, weight in module.state_dict().items():
        own = pairs_apart(weight) if "q_proj" in name or "k_proj" in name else weight
        writer.add_tensor(gguf_name(name), own.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(100)[None]
    with torch.inference_mode():
        return model(ids).logits[0, -1]


def divided(module: LlamaForCausalLM, divisor: torch.Tensor) -> torch.Tensor:
    """The logits of ``module`` with rotary frequencies divided so."""
    frequencies = module.model.rotary_emb.inv_freq
    before = frequencies.clone()
    frequencies.div_(divisor)
    logits = logits_of(module)
    frequencies.copy_(before)
    return logits


def linear_by_four(writer: "gguf.GGUFWriter") -> None:
    writer.add_string("llama.rope.scaling.type", "linear")
    writer.add_rope_scaling_factor(4.0)


FACTORS = torch.linspace(1.0, 8.0, HALF_HEAD)


@pytest.mark.parametrize(
    ("add", "divisor"),
    [
        (lambda writer: None, torch.tensor(1.0)),
        (lambda writer: writer.add_tensor("rope_freqs.weight", FACTORS.numpy()), FACTORS),
        (linear_by_four, torch.tensor(4.0)),
        (lambda writer: writer.add_float32("llama.rope.scale_linear", 2.0), torch.tensor(2.0)),
        (lambda writer: writer.add_string("llama.rope.scaling.type", "none"), torch.tensor(1.0)),
    ],
    ids=["none", "factors", "linear", "linear as before", "type none"],
)
def test_gguf_rope_scaling_that_divides_is_applied(
    module: LlamaForCausalLM, tmp_path: Path, add: Callable[[object], None], divisor: torch.Tensor
) -> None:
    path = written(module, tmp_path / "model.gguf", add)
    loaded = load_model(str(path), load_format="auto", dtype="float32", device=CPU, seed=0)
    assert torch.allclose(logits_of(loaded.module), divided(module, divisor), atol=1e-5)
    if divisor.max() > 1:
        assert not torch.allclose(logits_of(loaded.module), logits_of(module), atol=1e-3), "it shows in the logits"


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (lambda writer: writer.add_string("llama.rope.scaling.type", "yarn"), r"rope scaling \(yarn\) is not read"),
        (lambda writer: writer.add_string("llama.rope.scaling.type", "longrope"), r"rope scaling \(longrope\)"),
        (
            lambda writer: writer.add_tensor("rope_factors_long.weight", np.ones(HALF_HEAD, dtype=np.float32)),
            r"rope scaling \(longrope\)",
        ),
        (
            lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(HALF_HEAD + 1, dtype=np.float32)),
            f"has {HALF_HEAD + 1} factors for {HALF_HEAD} frequencies",
        ),
    ],
    ids=["yarn", "longrope", "long factors", "other number"],
)
def test_gguf_rope_scaling_that_is_more_is_refused(
    module: LlamaForCausalLM, tmp_path: Path, add: Callable[[object], None], said: str
) -> None:
    path = written(module, tmp_path / "model.gguf", add)
    with pytest.raises(UserError, match=said):
        load_model(str(path), load_format="auto", dtype="float32", device=CPU, seed=0)


def test_gguf_file_in_capitals_is_one(module: LlamaForCausalLM, tmp_path: Path) -> None:
    path = written(module, tmp_path / "model.gguf", lambda writer: None)
    shutil.move(path, tmp_path / "model.GGUF")
    loaded = load_model(str(tmp_path / "model.GGUF"), load_format="auto", dtype="float32", device=CPU, seed=0)
    assert loaded.load_format == "auto, dequantized"
