"""Tiny random models of the architectures that the study's engines cover, and answers of theirs to compare with."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from hybridgraph.models.loading import LoadedModel, load_model

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TIE = 1e-5  # of the logits' spread: float32 rounds to a tenth of that on the way to them

ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama-mha": {"model_type": "llama", "num_key_value_heads": 4},
    "llama-gqa": {"model_type": "llama", "num_key_value_heads": 2},
    "llama-tied": {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 24},
}


def tiny_model(name: str, directory: Path, *, device: str = "cpu", dtype: str = "float32") -> LoadedModel:
    """The architecture ``name`` with fresh random weights, loaded the way a user's directory is."""
    numbers = SMALL | ARCHITECTURES[name]
    AutoConfig.for_model(**numbers).save_pretrained(directory)
    seed = int(torch.randint(1 << 30, ()))
    loaded = load_model(str(directory), load_format="dummy", dtype=dtype, device=torch.device(device), seed=seed)
    for parameter in loaded.module.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4.0)  # small random models are near-uniform: spread the logits so that ids are not ties
    return loaded


@torch.inference_mode()
def without_ties(
    model: PreTrainedModel, draw: Callable[[], list[int]], answer: Callable[[list[int]], list[int]]
) -> tuple[list[int], list[int]]:
    """A prompt of ``draw`` and its greedy ``answer``, none of whose ids hangs on how float32 is rounded.

    In 30,000 ids of a tiny model there is about one chance in seven of one that does, which no two ways of adding up
    need agree on.
    """
    while True:
        prompt = draw()
        expected = answer(prompt)
        logits = model(torch.tensor([[*prompt, *expected[:-1]]])).logits[0, len(prompt) - 1 :]
        likeliest = logits.topk(2).values
        if bool(((likeliest[:, 0] - likeliest[:, 1]) > TIE * logits.std(-1)).all()):
            return prompt, expected
