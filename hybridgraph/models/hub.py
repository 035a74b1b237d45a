"""Looking a model up, in a directory or on the hub: what goes wrong is one line. Loads no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridgraph.errors import UserError, one_line
from hybridgraph.models.faults import in_our_words
from hybridgraph.models.shapes import BUILTIN_SHAPES, builtin_config

HUB_ID = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@contextmanager
def looking_up(name: str, *, what: str = "model") -> Iterator[None]:
    """Turn what goes wrong while ``name`` is looked up and read into a UserError that says what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a file's fault raises whatever it leads to in the library that reads it
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise UserError(
                f"model '{name}' is gated: accept its licence on its hub page and log in with 'hf auth login', "
                "or measure its shape with --load-format dummy"
            ) from None
        if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            raise UserError(f"model '{name}' is not on the hub: a hub id is owner/name") from None
        raise UserError(f"{what} '{name}' cannot be loaded: {in_our_words(error)}") from None


def known_numbers(name: str, load_format: str) -> dict[str, Any]:
    """What is known of a model before it is loaded: for dummy weights its ``config.json``, else nothing.

    Raises UserError for a model that cannot be there; the hub is not asked.
    """
    if load_format == "dummy":
        return _local_numbers(name)
    if name in BUILTIN_SHAPES and local_directory(name) is None:
        raise UserError(
            f"'{name}' is a shape without weights: load format dummy, or a hub id or directory for real ones"
        )
    location_of(name)
    return {}


def numbers_of(name: str, load_format: str) -> dict[str, Any]:
    """What is known before weights are loaded: as ``known_numbers``, but of a hub id what its ``config.json`` says."""
    numbers = known_numbers(name, load_format)
    if load_format == "dummy" or is_gguf(name):
        return numbers
    return configuration_in(location_of(name)[0])


def is_gguf(name: str) -> bool:
    """Whether ``name`` is that of one GGUF file."""
    return name.lower().endswith(".gguf")


def _local_numbers(name: str) -> dict[str, Any]:
    if (numbers := builtin_config(name)) is not None:
        return numbers
    if (directory := local_directory(name)) is None:
        raise unknown_model(name)
    return configuration_in(str(directory))


def unknown_model(name: str) -> UserError:
    """What to tell of a name that is no built-in shape and no directory, where no hub is asked."""
    return UserError(
        f"unknown model '{name}': with --load-format dummy, one of {', '.join(BUILTIN_SHAPES)} "
        "or a local directory with a config.json (hub ids need --load-format auto)"
    )


def local_directory(name: str) -> Path | None:
    """The directory ``name``, or None where there is none; raises UserError for a path that cannot be looked at."""
    try:
        directory = Path(name).expanduser()
        return directory if directory.is_dir() else None
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name, and nobody is called so
        raise UserError(f"{name} cannot be looked at: {getattr(error, 'strerror', None) or error}") from None


def read_configuration(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; raises UserError for anything else, but FileNotFoundError where it is not there."""
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {one_line(error)}") from None
    if not isinstance(numbers, dict):
        raise UserError(f"{path} holds a JSON {type(numbers).__name__}, not the object of a model configuration")
    return numbers


def configuration_in(location: str, file: str = "config.json", *, required: bool = True) -> dict[str, Any]:
    """The JSON object in ``file`` of a directory or hub id; empty where there is none and none is ``required``."""
    try:
        return read_configuration(file_in(location, file, required=required))
    except FileNotFoundError:
        if not required:
            return {}
        raise UserError(f"{location} holds no {file}: it is no model directory") from None


def file_in(location: str, file: str, *, required: bool = True) -> Path:
    """Where ``file`` of a directory or hub id lies, which is downloaded; it may not be there, unless ``required``."""
    directory = local_directory(location)
    return directory / file if directory else _downloaded(location, file, required=required)


def _downloaded(repository: str, file: str, *, required: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with looking_up(repository):
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError:
            if required:
                raise
            return Path(repository) / file  # there is none, and none is needed


def location_of(name: str) -> tuple[str, dict[str, Any]]:
    """The first argument of transformers' ``from_pretrained``, and those that name one file in it.

    Raises UserError for what is not there and could not be on the hub either.
    """
    repository, file = name, {}
    if is_gguf(name):
        repository, slash, file_name = name.rpartition("/")
        repository, file = repository or slash or ".", {"gguf_file": file_name}
    directory = local_directory(repository)
    if directory is None and not HUB_ID.fullmatch(repository):
        raise UserError(f"model '{name}' is not there, and no hub id: that is owner/name")
    if directory is not None and file and not (directory / file["gguf_file"]).is_file():
        raise UserError(f"model '{name}' is not there: {directory} holds no such file")
    return str(directory or repository), file


def special_ids(*configurations: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that begin, end or pad a text, by any of ``configurations``; ascending."""
    found: set[int] = set()
    for numbers in configurations:
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            found.update(ids_in(numbers.get(key)))
    return tuple(sorted(found))


def ids_in(value: Any) -> list[int]:
    """The ids of a configuration's value, which may be one, a list of them, or anything at all."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if type(item) is int and abs(item) < 1 << 31]
