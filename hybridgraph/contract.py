"""The engine contract: a request goes in, ids come out, and a report of how.

Plain dataclasses of plain values: they travel over IPC unchanged, and can be read without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from hybridgraph.errors import UserError
from hybridgraph.roofline import ModelShape, Rates

GraphPath = Literal["exact", "padded", "captured", "eager", "chunked"]
STUDY_PATHS: tuple[GraphPath, ...] = ("exact", "padded", "captured", "eager")
GRAPH_PATHS: tuple[GraphPath, ...] = (*STUDY_PATHS, "chunked")


MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 100.0  # below, logits divided by it leave float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to answer. ``temperature`` 0 is greedy; ``seed`` fixes every draw of a sampled answer."""

    prompt_ids: list[int]
    max_new_tokens: int = 1
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a source knows about the answer it has just finished."""

    device_ms: float | None = None  # device time from the first operation of the prompt to its first sampled id
    graph_path: GraphPath | None = None
    engine_ttft_ms: float | None = None  # the engine's own first-token metric, where it has one
    overflowed: bool | None = None  # whether its last logits are not all finite; None where nobody looks


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Who answers: enough to interpret every number that was measured on it."""

    model: str
    dtype: str
    load_format: str
    device: str  # the name of the processor or GPU
    vocab_size: int
    max_seq_len: int
    special_ids: tuple[int, ...] = ()
    graph_backend: str = "none"  # "none", "cuda", "emulated", or what the engine calls its own
    ops: str = ""
    forward: str = ""
    shape: ModelShape | None = None
    rates: Rates | None = None
    environment: dict[str, Any] = field(default_factory=dict)  # JSON values only


def check_request(request: Request, info: SourceInfo) -> None:
    """Raise UserError for a request that cannot be answered as it stands; nothing is truncated."""
    num_ids = len(request.prompt_ids)
    if num_ids == 0:
        raise UserError("the prompt is empty: at least 1 token id is needed")
    if request.max_new_tokens < 1:
        raise UserError(f"max_new_tokens {request.max_new_tokens}: at least 1 is needed")
    if (needed := num_ids + request.max_new_tokens) > info.max_seq_len:
        raise UserError(
            f"{num_ids} prompt ids and {request.max_new_tokens} new tokens exceed the {info.max_seq_len} positions: "
            f"ask for more with max_seq_len={needed}"
        )
    lowest, highest = min(request.prompt_ids), max(request.prompt_ids)
    if lowest < 0 or highest >= info.vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"token id {wrong} is outside the vocabulary of {info.vocab_size}")
    if request.temperature != 0.0 and not MIN_TEMPERATURE <= request.temperature <= MAX_TEMPERATURE:
        raise UserError(
            f"temperature {request.temperature}: 0 (greedy), or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}"
        )


class TokenSource(Protocol):
    """Anything that turns prompt ids into a stream of ids: the only thing the measuring loop knows."""

    @property
    def info(self) -> SourceInfo: ...

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        """Answer ``request``: call ``emit`` with each id at the moment it is a Python int in this process."""
        ...

    def stats(self) -> dict[str, Any]:
        """Counters and costs of the source's life so far, as JSON values."""
        ...

    def close(self) -> None:
        """Release the device, the processes and the sockets that this source started."""
        ...
