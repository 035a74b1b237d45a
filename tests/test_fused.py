"""The fused forward on the CPU: the ids and logits of the Hugging Face forward, on the same single copy of weights."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, SMALL, tiny_model, without_ties
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hybridgraph.engine.forward import weights as weights_module
from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.errors import UserError
from hybridgraph.models.loading import LoadedModel

Ids = Callable[[int, int], list[int]]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}

# What the shared architectures leave at its default, and this forward has code for.
VARIANTS: dict[str, dict[str, object]] = {
    "llama3-rope": {"model_type": "llama", "num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE},
    "yarn-rope": {"model_type": "llama", "num_key_value_heads": 2, "rope_parameters": YARN_ROPE},
    "mistral-window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 200},
    "one-layer": {"model_type": "llama", "num_key_value_heads": 4, "num_hidden_layers": 1},
}


def build(name: str, directory: Path) -> PreTrainedModel:
    """A tiny model whose every weight is random, biases and norms too."""
    if name in ARCHITECTURES:
        model = tiny_model(name, directory).module
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(SMALL | VARIANTS[name]))).eval()
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.08)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(params=[*ARCHITECTURES, *VARIANTS])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    return build(request.param, tmp_path)


def prefill(
    forward: FusedForward, ids: list[int], padded_to: int, positions: int = 192, starts: Sequence[int] = (0,)
) -> tuple[Tensor, object]:
    """Run ``ids`` in pieces that begin at ``starts``, the last one padded."""
    cache = forward.allocate_cache(positions)
    vocab = forward._weights.head.shape[0]
    logits = torch.full((vocab,), torch.nan)
    padded = torch.tensor(ids + [0] * (padded_to - len(ids)))
    for start, end in pairwise([*starts, padded_to]):
        last = min(end, len(ids)) - 1
        forward.prefill(padded, end - start, torch.tensor([start]), torch.tensor([last]), cache, logits)
    return logits, cache


def greedy(
    forward: FusedForward,
    ids: list[int],
    new_tokens: int,
    padded_to: int | None = None,
    starts: Sequence[int] = (0,),
) -> list[int]:
    logits, cache = prefill(forward, ids, padded_to or len(ids), len(ids) + new_tokens + 32, starts)
    answer = [int(logits.argmax())]
    while len(answer) < new_tokens:
        position = torch.tensor([len(ids) + len(answer) - 1])
        forward.decode(torch.tensor(answer[-1:]), position, cache, logits)  # type: ignore[arg-type]
        answer.append(int(logits.argmax()))
    return answer


def generated(model: PreTrainedModel, ids: list[int], new_tokens: int) -> list[int]:
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(ids) :].tolist()


def prompt_and_answer(
    model: PreTrainedModel, draw: Callable[[], list[int]], new_tokens: int
) -> tuple[list[int], list[int]]:
    """A prompt, and what ``generate()`` answers."""
    return without_ties(model, draw, lambda prompt: generated(model, prompt, new_tokens))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@torch.inference_mode()
def test_greedy_ids_equal_generate_over_64_tokens(model: PreTrainedModel, random_ids: Ids) -> None:
    answers = [prompt_and_answer(model, partial(random_ids, length, 500), 64) for length in (1, 23)]
    forward = FusedForward(model)
    for prompt, expected in answers:
        assert greedy(forward, prompt, 64) == expected


@torch.inference_mode()
def test_logits_are_those_of_the_module_before_and_after_merging(model: PreTrainedModel, random_ids: Ids) -> None:
    ids = random_ids(61, 500)
    before = model(torch.tensor([ids])).logits[0, -1].clone()
    logits, _ = prefill(FusedForward(model), ids, len(ids))
    assert relative_error(logits, before) < 1e-4
    after = model(torch.tensor([ids])).logits[0, -1]
    assert relative_error(after, before) < 1e-6


@torch.inference_mode()
def test_a_padded_prompt_answers_as_the_exact_one(model: PreTrainedModel, random_ids: Ids) -> None:
    forward = FusedForward(model)
    ids, expected = prompt_and_answer(model, partial(random_ids, 37, 500), 30)
    exact, _ = prefill(forward, ids, 37)
    padded, _ = prefill(forward, ids, 50)
    assert relative_error(padded, exact) < 1e-5
    assert greedy(forward, ids, 30, padded_to=50) == greedy(forward, ids, 30) == expected


@torch.inference_mode()
def test_a_prompt_in_pieces_answers_as_the_whole_one(model: PreTrainedModel, random_ids: Ids) -> None:
    """Cut anywhere, and padded at the end."""
    ids, answer = prompt_and_answer(model, partial(random_ids, 61, 500), 64)
    expected = model(torch.tensor([ids])).logits[0, -1]
    forward = FusedForward(model)
    for _ in range(3):
        starts = [0, *sorted(random.sample(range(1, 61), 3))]
        chunked, _ = prefill(forward, ids, 70, starts=starts)
        assert relative_error(chunked, expected) < 1e-4
        assert greedy(forward, ids, 64, padded_to=70, starts=starts) == answer


@torch.inference_mode()
def test_weights_are_held_once(model: PreTrainedModel) -> None:
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    forward = FusedForward(model)
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == sizes
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert sum(held.values()) == sum(p.numel() * p.element_size() for p in model.parameters())
    for layer, weights in zip(model.model.layers, forward._weights.layers, strict=True):
        attention = layer.self_attn
        assert attention.q_proj.weight.data_ptr() == weights.qkv.data_ptr()
        rows = attention.q_proj.weight.shape[0]
        assert attention.k_proj.weight.data_ptr() == weights.qkv[rows:].data_ptr()
        assert weights.out.data_ptr() == attention.o_proj.weight.data_ptr()
        assert layer.mlp.gate_proj.weight.data_ptr() == weights.gate_up.data_ptr()
    again = FusedForward(model)
    assert again._weights.layers[0].qkv.data_ptr() == forward._weights.layers[0].qkv.data_ptr()


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 90}, "model type gpt2"),
        (SMALL | {"model_type": "gemma", "head_dim": 16}, "model type gemma"),
        (SMALL | {"model_type": "llama", "hidden_act": "gelu"}, "activation gelu"),
        (SMALL | {"model_type": "llama", "mlp_bias": True}, "biases in gate_proj, down_proj"),
        (
            SMALL
            | {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope scaling dynamic",
        ),
    ],
)
def test_what_is_not_covered_is_told_in_one_line(numbers: dict[str, object], reason: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**numbers))
    with pytest.raises(UserError, match=reason) as error:
        FusedForward(model)
    assert "\n" not in str(error.value)


def test_an_active_window_is_told_in_one_line(tmp_path: Path) -> None:
    forward = FusedForward(build("mistral-window", tmp_path))
    with pytest.raises(UserError, match="window of 200, less than the 201 positions"):
        forward.allocate_cache(201)


@torch.inference_mode()
def test_real_model_answers_as_generate_does(trained: LoadedModel) -> None:
    def draw(length: int) -> list[int]:
        seed = int(torch.randint(40000, ()))
        return [504 + (seed + i * 104729) % 40000 for i in range(length)]

    answers = [prompt_and_answer(trained.module, partial(draw, length), 64) for length in (3, 29)]
    forward = FusedForward(trained.module)
    for prompt, expected in answers:
        assert greedy(forward, prompt, 64) == expected


def released(name: str, directory: Path) -> PreTrainedModel:
    """A tiny model in float16 of weights that were bfloat16, a few of them too large to be packed."""
    model = tiny_model(name, directory, dtype="float16").module
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
        if parameter.dim() > 1:
            flat = parameter.view(-1)
            flat[torch.randint(flat.numel(), (2,))] = 0.75
    return model


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama-gqa", "llama-tied", "qwen2", "qwen3"])
def test_packed_weights_give_the_plain_ones_logits_bit_for_bit(
    name: str, tmp_path: Path, random_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "MOST_EXCEPTIONS", 0.01)  # tiny matrices: two in some thousand
    model = released(name, tmp_path)
    prompt = random_ids(9, 500)
    answers = []
    for weights in ("plain", "packed"):
        forward = FusedForward(model, weights=weights)
        assert (forward.why_plain is None) == (weights == "packed")
        logits, cache = prefill(forward, prompt, 12)
        prefilled = logits.clone()
        forward.decode(torch.tensor([7]), torch.tensor([9]), cache, logits)  # type: ignore[arg-type]
        answers.append((prefilled, logits))
    assert all(map(torch.equal, *answers))


@torch.inference_mode()
def test_packed_weights_that_do_not_fit_are_refused_with_their_count(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa", tmp_path, dtype="float16").module
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.02)  # eleven significant bits
    with pytest.raises(UserError, match=r"--weights packed: [\d,]+ of [\d,]+ weights do not fit twelve bits"):
        FusedForward(model, weights="packed")
    why = FusedForward(model, weights="auto").why_plain
    assert why is not None and "do not fit twelve bits" in why
    with pytest.raises(UserError, match="float32"):
        FusedForward(model.float(), weights="packed")


def test_packed_weights_too_large_for_any_packing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "MOST_EXCEPTIONS", 0.01)
    model = released("llama-gqa", tmp_path)
    model.lm_head.weight.data[3, 3] = 20000.0
    with pytest.raises(UserError, match="--weights packed: weights beyond"):
        FusedForward(model, weights="packed")
