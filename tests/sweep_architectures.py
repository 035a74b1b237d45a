"""Every causal architecture of transformers, tiny, in every case: measured with the ids of ``generate()``, or refused.

python tests/sweep_architectures.py --write          # all of them, and docs/architectures.md
python tests/sweep_architectures.py llama bamba      # some
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import randrange
from typing import Any

import torch
from architectures import TIE
from transformers import CONFIG_MAPPING, GenerationConfig, PretrainedConfig

from hybridgraph.contract import Request, TokenSource
from hybridgraph.engine.engine import HybridEngine
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.errors import UserError, one_line
from hybridgraph.models.loading import LoadedModel, load_model
from hybridgraph.sources.huggingface import HuggingFaceSource

POSITIONS, NEW_TOKENS, LENGTHS = 96, 24, (1, 7, 30, 61)
WINDOW = 16
# What makes an architecture small, under whichever of these names it has a number.
SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 500, "max_position_embeddings": 256,
    "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "image_size": 32, "patch_size": 8,
}  # fmt: skip
# What an architecture needs besides.
NUMBERS: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one architecture: for each column "measured", or why it was refused."""

    name: str
    outcomes: dict[str, str]


ENGINES: dict[str, EngineOptions] = {
    "Case 3": EngineOptions(ops="native", graphs="none", positions=POSITIONS),
    "Cases 2 and 4": EngineOptions(ops="native", precapture=(8, 32, 64), positions=POSITIONS, async_capture=False),
    "Case 4, fused": EngineOptions(
        ops="fused", forward="fused", precapture=(8, 32, 64), positions=POSITIONS, async_capture=False
    ),
}
MEASURED = "measured"


def fields_of(config_class: type[PretrainedConfig]) -> set[str]:
    """The numbers that a configuration of that class has."""
    names = set(config_class.attribute_map)
    for base in config_class.__mro__:
        names |= set(vars(base).get("__annotations__", {}))
        if "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    return names


def tiny_numbers(model_type: str) -> dict[str, Any]:
    """The ``config.json`` of a small model of ``model_type``."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    numbers = _small(CONFIG_MAPPING[model_type]) | ids | NUMBERS.get(model_type, {})
    return {"model_type": model_type} | numbers


def _small(config_class: type[PretrainedConfig]) -> dict[str, Any]:
    known = fields_of(config_class)
    numbers: dict[str, Any] = {name: value for name, value in SMALL.items() if name in known}
    for name, part in config_class.sub_configs.items():
        if hasattr(part, "model_type"):
            numbers[name] = _small(part) | ({"model_type": part.model_type} if part.model_type else {})
    return numbers


def load(numbers: dict[str, Any], directory: Path) -> LoadedModel:
    """The model of a ``config.json``, its logits spread so that ids are no ties."""
    (directory / "config.json").write_text(json.dumps(numbers))
    loaded = load_model(str(directory), load_format="dummy", dtype="float32", device=torch.device("cpu"), seed=1)
    for parameter in loaded.module.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4.0)
    return loaded


@torch.inference_mode()
def generated(loaded: LoadedModel, length: int) -> tuple[list[int], list[int]]:
    """A fresh prompt of ``length``, and what ``generate()`` answers; none of the ids hangs on a rounding."""
    module = loaded.module
    module.generation_config = GenerationConfig(pad_token_id=0)
    accepted = "attention_mask" in inspect.signature(module.forward).parameters
    for _ in range(20):
        prompt = torch.tensor([[randrange(3, loaded.vocab_size) for _ in range(length)]])
        output = module.generate(
            prompt,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **({"attention_mask": torch.ones_like(prompt)} if accepted else {}),
        )
        logits = torch.stack(output.logits)[:, 0]
        assert logits.isfinite().all(), "the tiny model's logits are not finite"
        likeliest = logits.topk(2).values
        if bool(((likeliest[:, 0] - likeliest[:, 1]) > TIE * logits.std(-1)).all()):
            return prompt[0].tolist(), output.sequences[0, length:].tolist()
    raise AssertionError("no prompt without ties was found")


def sources(loaded: LoadedModel) -> Iterator[tuple[str, TokenSource | UserError]]:
    """Each case's source, or why there is none."""
    yield "Case 1", HuggingFaceSource(loaded, loaded.info())
    for name, options in ENGINES.items():
        try:
            with HybridEngine(loaded, options, loaded.info()) as engine:
                yield name, engine
        except UserError as error:
            yield name, error


def outcome_of(source: TokenSource | UserError, prompts: list[tuple[list[int], list[int]]]) -> str:
    """ "measured", or why not; raises AssertionError for other ids than expected."""
    if isinstance(source, UserError):
        return one_line(source)
    for prompt, expected in prompts:
        answer: list[int] = []
        request = Request(prompt_ids=prompt, max_new_tokens=NEW_TOKENS, temperature=0.0)
        try:
            source.stream(request, answer.append)
        except UserError as error:
            return one_line(error)
        assert answer == expected, f"{len(prompt)} prompt ids: {answer}, but generate() answers {expected}"
    return MEASURED


def sweep(numbers: dict[str, Any], name: str) -> Row:
    """Run one architecture through every case; raises whatever is neither an equal answer nor a UserError."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            loaded = load(numbers, Path(directory))
        except UserError as error:
            reason = one_line(error).replace(directory, "the model")
            return Row(name=name, outcomes=dict.fromkeys(("Case 1", *ENGINES), reason))
        prompts = [generated(loaded, length) for length in LENGTHS]
        outcomes = {case: outcome_of(source, prompts) for case, source in sources(loaded)}
        return Row(name=name, outcomes={case: text.replace(directory, "the model") for case, text in outcomes.items()})
