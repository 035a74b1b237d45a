"""The prompts of ``--prompt-file``. Loads no engine of ours: a client and Case 5 need none to read a text."""

from __future__ import annotations

from pathlib import Path

from hybridgraph.bench.prompts import TextPrompts
from hybridgraph.config import ProtocolSettings
from hybridgraph.errors import UserError
from hybridgraph.models.hub import location_of, looking_up


def read_text(path: str) -> str:
    """The text that prompts are cut from; raises UserError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-file {path}: {getattr(error, 'strerror', None) or error}") from None


def text_prompts(config: ProtocolSettings, model: str, vocab_size: int) -> TextPrompts:
    """Windows of the text, cut by the tokenizer of ``model``, which has ``vocab_size`` ids.

    Raises UserError for a text that is shorter than a prompt, or that holds a token which the model does not have.
    """
    from transformers import AutoTokenizer

    assert config.prompt_file is not None
    text = read_text(config.prompt_file)
    location, file = location_of(model)
    with looking_up(model, what="tokenizer of"):
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False, **file)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids and (beyond := max(ids)) >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(beyond)
        raise UserError(
            f"--prompt-file {config.prompt_file}: the tokenizer of '{model}' makes id {beyond} ({token!r:.40}) of it, "
            f"beyond the model's {vocab_size}"
        )
    prompts = TextPrompts(ids, seed=config.seed, source=config.prompt_file)
    prompts.ids(max(config.prompt_lengths), 0)  # now, and not after the shorter ones are measured
    return prompts
