"""Every causal architecture of transformers, tiny, in every case: measured with the ids of ``generate()``, or refused.

python tests/sweep_architectures.py --write          # all of them, and docs/architectures.md
python tests/sweep_architectures.py llama bamba      # some
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import randrange
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where this is a checkout that was not installed

import torch
import transformers
from architectures import TIE
from transformers import CONFIG_MAPPING, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

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
    "v_head_dim": 16, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 32, "image_size": 32, "patch_size": 8,
}  # fmt: skip
PAGE = Path(__file__).resolve().parent.parent / "docs" / "architectures.md"
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
GATED_DELTA = HYBRID | {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
MLA = {"num_key_value_heads": 4}
MLA8 = MLA | {"head_dim": 8}  # where that is the rotated part's
ROPE = {"rope_theta": 1e4, "original_max_position_embeddings": 32}
LONGROPE = ROPE | {
    "rope_type": "longrope", "factor": 8.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
}  # fmt: skip
# What an architecture needs besides.
NUMBERS: dict[str, dict[str, Any]] = {
    "axk1": MLA,
    "axk2": MLA8,
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "dbrx": {"attn_config": {"kv_n_heads": 2}, "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96}},
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "deepseek_v32": MLA8,
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64, "mamba_d_head": 8},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 500, "hidden_size_per_layer_input": 16,
        "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma4_text": {"vocab_size_per_layer_input": 500, "hidden_size_per_layer_input": 16},
    "glm4_moe_lite": MLA8,
    "glm_moe_dsa": MLA8,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": MAMBA | HYBRID,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "kimi_linear": HYBRID | MLA | {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_token": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": MLA8 | {
        "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "zero_expert_num": 2, "moe_topk": 2, "num_layers": 1,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2},
    "minicpm3": MLA,
    "nemotron_h": {
        "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2,
        "moe_shared_expert_intermediate_size": 32,
    },
    "qwen3_5": {"text_config": GATED_DELTA},
    "qwen3_5_moe": {"text_config": GATED_DELTA},
    "qwen3_5_moe_text": GATED_DELTA,
    "qwen3_5_text": GATED_DELTA,
    "qwen3_next": GATED_DELTA,
    "qwen4_exp": {"text_config": GATED_DELTA},
    "qwen4_exp_text": GATED_DELTA,
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64},
    "reformer": {
        "is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "attention_head_size": 16,
        "num_buckets": 2,
    },
    "xlnet": {"d_head": 16},
    "xlstm": {"num_heads": 4, "num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "youtu": MLA,
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"], "attention_hidden_size": 128, "attention_head_dim": 32,
        "mamba_dt_rank": 8,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "n_mamba_heads": 8, "mamba_d_state": 16},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


# Architectures whose inputs, positions or caches depend on a number.
VARIANTS: dict[str, dict[str, Any]] = {
    "falcon, alibi": {"model_type": "falcon", "alibi": True},
    "falcon, multi-query": {"model_type": "falcon", "multi_query": True, "new_decoder_architecture": False},
    "llama, dynamic rope": {"model_type": "llama", "rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}},
    "llama, linear rope": {"model_type": "llama", "rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}},
    "llama, longrope": {"model_type": "llama", "rope_parameters": LONGROPE},
    "llama, yarn": {"model_type": "llama", "rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0}},
    "llama, window in the file": {"model_type": "llama", "sliding_window": WINDOW},
    "llama4_text, full attention, temperature by position": {
        "model_type": "llama4_text", "layer_types": ["full_attention"] * 2, "no_rope_layers": [0, 0], "floor_scale": 8,
        "intermediate_size_mlp": 96,
    },
    "phi3, longrope": {"model_type": "phi3", "rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    "qwen3, window that no layer has": {
        "model_type": "qwen3", "use_sliding_window": True, "sliding_window": WINDOW,
        "layer_types": ["full_attention"] * 2,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one architecture: in each case measured, or why it was refused."""

    name: str
    outcomes: dict[str, str]


ENGINES: dict[str, EngineOptions] = {
    "Case 3": EngineOptions(ops="native", graphs="none", positions=POSITIONS),
    "Cases 2 and 4": EngineOptions(ops="native", precapture=(8, 32, 64), positions=POSITIONS, async_capture=False),
    "Case 4, fused": EngineOptions(
        ops="fused", forward="fused", precapture=(8, 32, 64), positions=POSITIONS, async_capture=False
    ),
}
CASES = ("Case 1", *ENGINES)
MEASURED = "measured"


def configurations() -> dict[str, dict[str, Any]]:
    """The ``config.json`` of everything that is swept, by name: every architecture, and variants of some."""
    found: dict[str, dict[str, Any]] = {}
    for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        numbers = tiny_numbers(model_type)
        found[model_type] = numbers
        if "sliding_window" in fields_of(CONFIG_MAPPING[model_type]):
            found[f"{model_type}, window"] = numbers | {"sliding_window": WINDOW}
    for name, numbers in VARIANTS.items():
        found[name] = _merged(tiny_numbers(numbers["model_type"]), numbers)
    return found


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
    return {"model_type": model_type} | _merged(_small(CONFIG_MAPPING[model_type]), NUMBERS.get(model_type, {}))


def _small(config_class: type[PretrainedConfig]) -> dict[str, Any]:
    known = fields_of(config_class)
    numbers: dict[str, Any] = {name: value for name, value in SMALL.items() if name in known}
    if "vocab_size" in known:
        numbers |= IDS
    for name, part in config_class.sub_configs.items():
        if hasattr(part, "model_type"):
            numbers[name] = _small(part) | ({"model_type": part.model_type} if part.model_type else {})
    return numbers


def _merged(numbers: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """``numbers`` with those of ``others``, also of the objects within."""
    objects = {name for name in others if isinstance(numbers.get(name), dict)}
    return numbers | others | {name: _merged(numbers[name], others[name]) for name in objects}


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
    """MEASURED, or why not; raises AssertionError for other ids than expected."""
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


def sweep(name: str, numbers: dict[str, Any]) -> Row:
    """Run one architecture through every case; raises whatever is neither an equal answer nor a UserError."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            loaded = load(numbers, Path(directory))
        except UserError as error:
            outcomes = dict.fromkeys(CASES, one_line(error))
        else:
            outcomes = {case: outcome_of(source, prompts_of(loaded)) for case, source in sources(loaded)}
        return Row(name=name, outcomes={case: said.replace(directory, "the model") for case, said in outcomes.items()})


@cache
def prompts_of(loaded: LoadedModel) -> list[tuple[list[int], list[int]]]:
    """Prompts with what ``generate()`` answers; where that fails, whatever: every case must refuse them."""
    try:
        return [generated(loaded, length) for length in LENGTHS]
    except AssertionError:
        raise
    except Exception as error:
        return [([5] * length, [f"generate() fails: {one_line(error)}"]) for length in LENGTHS]  # type: ignore[list-item]


TABLE = f"""# Architectures

Every causal language model that transformers {transformers.__version__} knows, tiny and with random weights, in every
case: measured, or refused in one line, whose reason stands here. Measured means that the greedy ids of {NEW_TOKENS}
tokens behind prompts of {", ".join(map(str, LENGTHS[:-1]))} and {LENGTHS[-1]} random ids are those of the model's own
`generate()`, in float32 on a CPU, where graphs are emulated, with {POSITIONS} positions. With `window`, the model
attends over the last {WINDOW} only, where it can.

Made by `python tests/sweep_architectures.py --write`, with torch {torch.__version__}. {{measured}}

| architecture | {" | ".join(CASES)} |
| --- |{" --- |" * len(CASES)}
"""


def table_of(rows: Sequence[Row]) -> str:
    """The page that lists ``rows``."""
    counts = [f"{sum(row.outcomes[case] == MEASURED for row in rows)} in {case}" for case in CASES]
    measured = f"Of {len(rows)}, measured are {', '.join(counts)}."
    lines = [f"| {row.name} | {' | '.join(_cell(row.outcomes[case]) for case in CASES)} |" for row in rows]
    return TABLE.format(measured=measured) + "\n".join(lines) + "\n"


def _cell(outcome: str) -> str:
    """``outcome`` in a few words: what the case itself says, without what it advises."""
    if outcome == MEASURED:
        return "yes"
    if "(model type " in outcome:
        return "not covered"
    reason = re.sub(r": (Cases? 1|use --forward|no case).*$", "", outcome)
    return reason.replace("|", "\\|")


def main() -> int:
    """Sweep those that are named, or all; tell every fault, and return how many there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows, faults, swept = [], 0, configurations()
    for name in options.names or swept:
        began = time.perf_counter()
        try:
            rows.append(sweep(name, swept[name]))
            said = "; ".join(f"{case}: {outcome}" for case, outcome in rows[-1].outcomes.items())
        except Exception as error:
            faults += 1
            said = f"FAULT {type(error).__name__}: {one_line(error)}"
        print(f"{name} ({time.perf_counter() - began:.0f} s): {said}", flush=True)
    if options.write and not faults:
        PAGE.write_text(table_of(rows))
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
