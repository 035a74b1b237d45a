"""A model as an engine of another environment takes it: a directory or hub id, and what its ``config.json`` says."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hybridgraph.config import ModelSettings
from hybridgraph.errors import UserError
from hybridgraph.models.hub import configuration_in, ids_in, is_gguf, location_of, numbers_of, special_ids
from hybridgraph.models.numbers import positions_of
from hybridgraph.models.shapes import DEFAULT_GPU_MODEL, builtin_config
from hybridgraph.roofline import ModelShape
from hybridgraph.sources.supervised import SCRATCH


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What an engine is pointed at. ``temporary`` holds the directory of a built-in shape for as long as it is used."""

    name: str
    location: str  # a directory, or a hub id
    dtype: str
    load_format: str
    config: Mapping[str, Any]
    end_id: int
    special_ids: tuple[int, ...]
    positions: int  # that the engine is given
    temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def shape(self) -> ModelShape | None:
        return ModelShape.from_config(self.config, self.dtype)

    def release(self) -> None:
        if self.temporary is not None:
            self.temporary.cleanup()


def open_checkpoint(config: ModelSettings, engine: str) -> Checkpoint:
    """Find the model of ``config``; raises UserError for one that ``engine`` cannot load as it stands."""
    name = config.model or DEFAULT_GPU_MODEL
    dtype = config.dtype or "float16"
    if is_gguf(name):
        raise UserError(f"{engine} loads no GGUF file: give a directory or hub id with safetensors instead of {name}")
    numbers = numbers_of(name, config.load_format)
    if config.load_format == "dummy" and builtin_config(name) is not None:
        location, generation = "", {}
    else:
        location = location_of(name)[0]
        generation = configuration_in(location, "generation_config.json", required=False)
    special = special_ids(numbers, generation)
    if not (end_ids := ids_in(numbers.get("eos_token_id"))):
        raise UserError(f"{name}/config.json has no eos_token_id: {engine} needs an end id where it has no tokenizer")
    if not isinstance(numbers.get("vocab_size"), int):
        raise UserError(f"{name}/config.json has no vocab_size: {engine} is measured on plain language models")
    positions = config.fitted(positions_of(SimpleNamespace(**numbers)), name).positions
    temporary = None if location else _written(numbers | {"torch_dtype": dtype})
    return Checkpoint(
        name=name,
        location=location or (temporary.name if temporary else ""),
        dtype=dtype,
        load_format=config.load_format,
        config=numbers,
        end_id=end_ids[0],
        special_ids=special,
        positions=positions,
        temporary=temporary,
    )


def _written(numbers: Mapping[str, Any]) -> tempfile.TemporaryDirectory[str]:
    directory = tempfile.TemporaryDirectory(prefix="hybridgraph-", dir=os.environ.get(SCRATCH))
    (Path(directory.name) / "config.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    return directory
