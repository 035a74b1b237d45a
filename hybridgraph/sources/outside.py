"""What engines that are not ours have in common: how they are started, asked and described, and their errors."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from hybridgraph.cases import Case
from hybridgraph.config import ModelSettings
from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.errors import UserError, one_line
from hybridgraph.machine.driver import Gpu, find_gpu, use_only
from hybridgraph.machine.provenance import versions
from hybridgraph.sources.checkpoint import Checkpoint, open_checkpoint
from hybridgraph.sources.introspection import Arguments

Answer = TypeVar("Answer")

# What an error's text matches, and what to do about it ("compile" holds the letters of MPI too).
_HINTS = (
    (r"(?<![a-z])(lib|open|o)?mpi", "check the MPI installation (Debian, Ubuntu: apt install libopenmpi-dev)"),
    ("out of memory", "the GPU is too small for this model, or another process holds its memory"),
    ("driver version is insufficient", "update the NVIDIA driver"),
    ("driver on your system is too old", "update the NVIDIA driver"),
    ("no module named", "install it in that environment"),
)


class OutsideEngine(Protocol[Answer]):
    """What an adapter makes of an engine's own interface."""

    name: str
    version: str
    arguments: Arguments  # that it was started with

    def ask(self, request: Request) -> Iterable[Answer]:
        """Its answers as they come, the last one complete."""

    def ids_of(self, answer: Answer) -> Sequence[int]:
        """All ids so far."""

    def report(self, answer: Answer) -> Report:
        """What it tells of a complete answer; raises UserError where that came of an earlier request's cache."""

    def shutdown(self) -> None: ...


class OutsideSource(Generic[Answer]):
    """A ``TokenSource`` over an engine of this process."""

    def __init__(self, engine: OutsideEngine[Answer], checkpoint: Checkpoint, info: SourceInfo) -> None:
        self._engine = engine
        self._checkpoint = checkpoint
        self._info = info
        self._num_checked = 0

    @property
    def info(self) -> SourceInfo:
        return self._info

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        name, num_tokens, last = self._engine.name, 0, None
        try:
            for last in self._engine.ask(request):
                ids = self._engine.ids_of(last)
                for token in ids[num_tokens:]:
                    emit(int(token))
                num_tokens = len(ids)
        except Exception as error:  # whatever the library and its workers raise
            raise UserError(f"{name} failed to answer: {explained(error)}") from None
        if last is None or num_tokens != request.max_new_tokens:
            raise UserError(f"{name}'s stream ended after {num_tokens} of {request.max_new_tokens} tokens")
        report = self._engine.report(last)
        self._num_checked += 1
        return report

    def stats(self) -> dict[str, Any]:
        return {"requests_without_reuse": self._num_checked}

    def close(self) -> None:
        self._engine.shutdown()
        self._checkpoint.release()


def open_outside(
    name: str, start: Callable[[Checkpoint, Gpu], OutsideEngine[Answer]], *, config: ModelSettings, case: Case,
    backend: str, packages: tuple[str, ...],
) -> OutsideSource[Answer]:  # fmt: skip
    """What ``start`` makes of the model of ``config``; raises UserError, in one line, where it cannot."""
    gpu = find_gpu(config.device, name)
    checkpoint = open_checkpoint(config, name)
    use_only(gpu)
    try:
        engine = start(checkpoint, gpu)
    except BaseException as error:
        checkpoint.release()
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise UserError(f"{name} could not start in {sys.executable}: {explained(error)}") from None
    info = _info_of(engine, backend, config=config, case=case, gpu=gpu, checkpoint=checkpoint, packages=packages)
    return OutsideSource(engine, checkpoint, info)


def version_of(package: str) -> str:
    """The version of an engine's own package."""
    return versions(package)[package] or "of unknown version"


def check_nothing_cached(name: str, cached: int | None) -> None:
    """Raise UserError where an engine took ``cached`` tokens of the prompt from an earlier request."""
    if cached:
        raise UserError(f"{name} reused {cached} cached tokens: this is not the TTFT of a new prompt")


def _info_of(
    engine: OutsideEngine[Answer], backend: str, *, config: ModelSettings, case: Case, gpu: Gpu, checkpoint: Checkpoint,
    packages: tuple[str, ...],
) -> SourceInfo:  # fmt: skip
    """Who answers. Rates stay unknown: measuring them takes a torch of ours, and the other cases' runs have them."""
    return SourceInfo(
        model=checkpoint.name,
        dtype=checkpoint.dtype,
        load_format=checkpoint.load_format,
        device=gpu.name,
        vocab_size=checkpoint.vocab_size,
        max_seq_len=checkpoint.positions,
        special_ids=checkpoint.special_ids,
        graph_backend=backend,
        ops=f"inside {engine.name}",
        forward=f"{engine.name} {engine.version}",
        shape=checkpoint.shape,
        environment={
            "case": case.key,
            "python": platform.python_version(),
            "system": platform.platform(),
            "packages": versions(*packages, "torch", "transformers", "numpy"),
            "gpu": {"name": gpu.name, "uuid": gpu.uuid, "driver": gpu.driver, "memory_bytes": gpu.memory_bytes},
            "engine": engine.arguments.as_json(),
            "resolved_configuration": config.as_json() | {"model": checkpoint.name, "dtype": checkpoint.dtype},
        },
    )


def explained(error: BaseException) -> str:
    """An engine's error as one line, with what to do where that is known."""
    text = one_line(error)
    hint = next((advice for pattern, advice in _HINTS if re.search(pattern, str(error).lower())), None)
    return f"{text}: {hint}" if hint else text
