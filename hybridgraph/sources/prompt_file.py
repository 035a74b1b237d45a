"""The prompts of ``--prompt-file``. Apart from ``build``: a client and Case 5 load no engine of ours to read a text."""

from __future__ import annotations

from pathlib import Path

from hybridgraph.config import Config
from hybridgraph.errors import UserError
from hybridgraph.model import load_tokenizer
from hybridgraph.prompts import TextPrompts
from hybridgraph.records import SourceInfo


def open_text_prompts(config: Config, info: SourceInfo) -> TextPrompts:
    """Windows of the text that ``--prompt-file`` names, cut by the model's own tokenizer."""
    assert config.prompt_file is not None
    path = Path(config.prompt_file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-file {path}: {error}") from None
    ids = load_tokenizer(info.model)(text, add_special_tokens=False)["input_ids"]
    return TextPrompts(ids, seed=config.seed, source=str(path))
