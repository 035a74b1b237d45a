"""Writing files: whole or not at all, and what goes wrong is one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridgraph.errors import UserError
from hybridgraph.places import require_own


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write ``path`` within it. What goes wrong is a user's to know: UserError, also where ``path`` is published."""
    require_own(path)
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` in one step: a reader, or a crash, sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
