"""The architectures the package carries: the numbers of their ``config.json``, no download and no licence."""

from __future__ import annotations

from typing import Any

DEFAULT_GPU_MODEL = "llama-2-7b"
DEFAULT_CPU_MODEL = "tiny-llama"

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

BUILTIN_SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "tiny-llama": _LLAMA
    | {
        "hidden_size": 128,
        "intermediate_size": 352,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
    },
}


def builtin_config(name: str) -> dict[str, Any] | None:
    """The ``config.json`` of a built-in shape as a fresh dict, or None where ``name`` is none."""
    shape = BUILTIN_SHAPES.get(name)
    return dict(shape) if shape is not None else None
