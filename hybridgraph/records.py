"""What is passed between a source of tokens, the measuring loop and the files.

Plain dataclasses of plain values: they travel over IPC and into files unchanged, and
can be read without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

from hybridgraph.errors import UserError
from hybridgraph.roofline import ModelShape, Rates

GraphPath = Literal["exact", "padded", "captured", "eager", "chunked"]
_STUDY_PATHS: tuple[GraphPath, ...] = ("exact", "padded", "captured", "eager")
GRAPH_PATHS: tuple[GraphPath, ...] = (*_STUDY_PATHS, "chunked")


def paths_taken(row: Mapping[Any, Any]) -> str:
    """A row's counts of graph paths as a person reads them: ``"exact 98, padded 7"``."""
    return ", ".join(f"{path} {row[path]:.0f}" for path in GRAPH_PATHS if row[path] > 0)


def overflow_told(count: int) -> str:
    """What to think of a run's times where the logits of ``count`` answers were no numbers; empty for none."""
    if not count:
        return ""
    return f"{count} answers ended in logits that are not finite: they take less power than numbers, and less time"


# "cold": the process's first request; "first_seen": the first at its prompt length, of one token or of several;
# "warm": every other.
Warmth = Literal["cold", "first_seen", "warm"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 100.0  # below, logits divided by it leave float32

PAPER = "paper"  # the protocol of the study

Phase = Literal["ttft", "p99", "decode"]
PHASES: tuple[Phase, ...] = ("ttft", "p99", "decode")  # as they are measured


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
    if num_ids + request.max_new_tokens > info.max_seq_len:
        raise UserError(
            f"{num_ids} prompt ids and {request.max_new_tokens} new tokens exceed the {info.max_seq_len} positions"
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


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request, as measured. Raw: every latency that is published is computed from these."""

    run_id: str
    phase: Phase
    prompt_length: int
    iteration: int
    warmth: Warmth
    ttft_ms: float
    device_ms: float | None = None
    engine_ttft_ms: float | None = None
    graph_path: GraphPath | None = None
    itl_ms: list[float] = field(default_factory=list)
    gc_collections: int = 0  # collections of Python's collector that ran inside the sample
    overflowed: bool | None = None  # as in Report


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What tells a row's run from every other; the last columns of every row."""

    graph_backend: str
    model: str
    dtype: str
    load_format: str
    device: str
    run_id: str
    ops: str
    forward: str
    sampling: str  # "T=0.7" or "greedy"
    seed: int
    protocol: str  # "paper", or what was different
    started: str  # ISO 8601, UTC
    commit: str  # of this project, with "-dirty" where the tree had changes; empty outside a checkout

    # Rows enter one table only when they agree on all of these.
    COMPARABLE: ClassVar[tuple[str, ...]] = ("device", "model", "dtype", "load_format", "sampling", "protocol")


IDENTITY_COLUMNS = tuple(f.name for f in fields(RunIdentity))

TTFT_COLUMNS = (
    "prompt_length", "mean_ms", "std_ms", "min_ms", "max_ms", "samples",
    "first_seen_ms", "warm_mean_ms", "device_ms", "floor_ms", "floor_ratio",
    *_STUDY_PATHS, *IDENTITY_COLUMNS, "cold_ms", "warm_p50_ms", "warm_samples", "engine_ttft_ms", "gc_collections",
    "chunked", "sustained_floor_ms", "overflowed",
)  # fmt: skip

P99_COLUMNS = (
    "prompt_length", "mean_ms", "p99_ms", "samples",
    *_STUDY_PATHS, *IDENTITY_COLUMNS, "p50_ms", "min_ms", "max_ms", "device_mean_ms", "device_p99_ms", "gc_collections",
    "chunked", "warm_samples", "overflowed",
)  # fmt: skip

DECODE_COLUMNS = (
    "prompt_length", "new_tokens", "itl_mean_ms", "itl_p50_ms", "itl_p99_ms", "tokens_per_s", "gb_per_s", "floor_ms",
    *IDENTITY_COLUMNS, "samples", "first_itl_ms", "overflowed",
)  # fmt: skip

COLUMNS: dict[Phase, tuple[str, ...]] = {"ttft": TTFT_COLUMNS, "p99": P99_COLUMNS, "decode": DECODE_COLUMNS}
