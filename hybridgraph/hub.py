"""Looking a model up, in a directory or on the hub: what goes wrong is one line. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridgraph.errors import UserError


@contextmanager
def looking_up(name: str) -> Iterator[None]:
    """Turn what goes wrong while ``name`` is looked up and read into a UserError that says what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except (OSError, ValueError, ImportError) as error:
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
        raise UserError(f"model '{name}' cannot be loaded: {first_line(error)}") from None


def location_of(name: str) -> tuple[str, dict[str, Any]]:
    """The first argument of transformers' ``from_pretrained``, and those that name one file in it."""
    if name.endswith(".gguf"):
        return str(Path(name).expanduser().parent), {"gguf_file": Path(name).name}
    return name, {}


def first_line(error: BaseException) -> str:
    """An exception's text on one line; its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
