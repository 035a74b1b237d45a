"""Models as engines of other environments take them, prompts from texts, and paths that cannot be looked at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import SMALL
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from hybridgraph.config import Config
from hybridgraph.errors import UserError
from hybridgraph.models.loading import load_model
from hybridgraph.report.load import load_results
from hybridgraph.sources.checkpoint import open_checkpoint
from hybridgraph.sources.prompt_file import text_prompts


def open_named(name: str, load_format: str) -> None:
    load_model(name, load_format=load_format, dtype="float32", device=torch.device("cpu"), seed=0)


def checkpoint_of(name: str, load_format: str) -> None:
    open_checkpoint(Config(model=name, load_format=load_format), "Engine")


def tokenizer_of(name: str, load_format: str) -> None:
    text_prompts(Config(model=name, load_format="auto", prompt_file=__file__), name, 500)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-is-called-so/model", "x" * 300 + "/x.gguf"])
@pytest.mark.parametrize("load_format", ["dummy", "auto"])
@pytest.mark.parametrize("opened", [open_named, checkpoint_of, tokenizer_of])
def test_a_model_whose_path_cannot_be_looked_at(
    name: str, load_format: str, opened: Callable[[str, str], None]
) -> None:
    with pytest.raises(UserError, match=r"cannot be looked at|loads no GGUF file"):
        opened(name, load_format)


def test_a_directory_that_may_not_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UserError, match="a/model cannot be looked at: Permission denied"):
        open_named("a/model", "dummy")


def test_a_report_of_a_directory_that_cannot_be_looked_at() -> None:
    with pytest.raises(UserError, match=r"cannot be looked at: File name too long|holds no result files"):
        load_results(Path("x" * 300))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"eos_token_id": "x"}, "no eos_token_id"),
        ({"eos_token_id": []}, "no eos_token_id"),
        ({"vocab_size": "500"}, "no vocab_size"),
        ({"max_position_embeddings": "abc"}, "max_position_embeddings 'abc' is no whole number"),
        ({"max_position_embeddings": [1024]}, "is no whole number"),
    ],
)
def test_a_faulty_configuration_of_another_engines_model(tmp_path: Path, damage: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | damage))
    with pytest.raises(UserError, match=said):
        open_checkpoint(Config(model=str(tmp_path)), "Engine")


def test_what_is_no_id_is_no_special_id(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"bos_token_id": "x", "eos_token_id": [None, 7, "x"]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": {"x": 1}, "pad_token_id": 10**30}))
    checkpoint = open_checkpoint(Config(model=str(tmp_path), load_format="auto"), "Engine")
    assert (checkpoint.end_id, checkpoint.special_ids) == (7, (7,))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A directory with a tokenizer of two words; the model's configuration lies beside it."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "llama"}))
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))).save_pretrained(
        tmp_path
    )
    return tmp_path


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda numbers: numbers.pop(key)


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("tokenizer.json", without("added_tokens"), "KeyError: 'added_tokens'"),
        ("tokenizer.json", without("model"), "Model missing"),
        ("tokenizer.json", lambda numbers: numbers["model"].update(unk_token="c"), "Missing .UNK. token"),
        ("tokenizer_config.json", lambda numbers: numbers.update(tokenizer_class=5), "AttributeError"),
    ],
)
def test_a_faulty_tokenizer(tokenizer: Path, file: str, damage: Callable[[dict[str, Any]], object], said: str) -> None:
    numbers = json.loads((tokenizer / file).read_text())
    damage(numbers)
    (tokenizer / file).write_text(json.dumps(numbers))
    with pytest.raises(UserError, match=rf"tokenizer of '{tokenizer}' cannot be loaded: .*{said}"):
        tokenizer_of(str(tokenizer), "auto")


def text_of(tmp_path: Path, text: str) -> str:
    (tmp_path / "text.txt").write_text(text)
    return str(tmp_path / "text.txt")


def test_prompt_file_with_a_token_that_the_model_does_not_have_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    config = Config(load_format="auto", prompt_file=text_of(tmp_path, "b"), prompt_lengths=(1,))
    assert text_prompts(config, str(tokenizer), 2).ids(1, 0) == [1]
    with pytest.raises(UserError, match=r"makes id 1 \('b'\) of it, beyond the model's 1"):
        text_prompts(config, str(tokenizer), 1)
