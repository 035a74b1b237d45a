"""A generator process that a measuring one starts for itself, and ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hybridgraph.errors import AlreadyTold, UserError
from hybridgraph.serving.client import GeneratorLost, RequestFailed
from hybridgraph.serving.ipc.address import fresh_socket_path, remove_left_behind, require_short
from hybridgraph.system.processes import STOP_S, TOLD, Child, failure, started


@contextmanager
def generator_process(name: str, arguments: Sequence[str]) -> Iterator[Path]:
    """Start a generator of our own, Python with ``arguments``; yields where it listens, and ends it with the block.

    Raises UserError, about ``name``, where it did not come to that, or was killed within the block.
    """
    path = fresh_socket_path()
    require_short(path)
    command = [sys.executable, *arguments, "--socket", str(path)]
    try:
        with started(command, title=name, stdout=subprocess.PIPE) as child:
            if not child.await_line("listening"):
                raise _ended_early(child, name)
            with _failures_explained(child, name):
                yield path
    finally:
        remove_left_behind(path)


@contextmanager
def _failures_explained(child: Child, name: str) -> Iterator[None]:
    """Of a generator that ends within the block, tell why; what it has told its user itself is not told again."""
    try:
        yield
    except RequestFailed as failed:
        if failed.kind != "start":
            raise
        child.wait(STOP_S)  # it says why on this terminal, and ends
        raise AlreadyTold(failed.reason) from None
    except GeneratorLost:
        if (code := child.wait(STOP_S)) is not None and code < 0:
            raise UserError(f"the generator {name} {failure(code)}") from None
        raise


def _ended_early(child: Child, name: str) -> UserError:
    code = child.wait()
    kind = AlreadyTold if code == TOLD else UserError
    return kind(f"the generator {name} ended before it listened (exit code {code})")
