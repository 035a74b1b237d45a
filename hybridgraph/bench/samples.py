"""Samples, the identity of their run, and the columns of the result files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from hybridgraph.bench import columns
from hybridgraph.config import SETTINGS, separating
from hybridgraph.contract import GRAPH_PATHS, GraphPath

# "cold": the process's first request; "first_seen": the first at its prompt length, of one token or of several;
# "warm": every other.
Warmth = Literal["cold", "first_seen", "warm"]
WARMTHS: tuple[Warmth, ...] = ("cold", "first_seen", "warm")

Phase = Literal["ttft", "p99", "decode"]
PHASES: tuple[Phase, ...] = ("ttft", "p99", "decode")  # as they are measured


def paths_taken(row: Mapping[Any, Any]) -> str:
    """A row's counts of graph paths as a person reads them: ``"exact 98, padded 7"``."""
    return ", ".join(f"{path} {row[path]:.0f}" for path in GRAPH_PATHS if row[path] > 0)


def overflow_told(count: int) -> str:
    """What to think of a run's times where the logits of ``count`` answers were no numbers; empty for none."""
    if not count:
        return ""
    return f"{count} answers ended in logits that are not finite: they take less power than numbers, and less time"


def stopped_told(count: int) -> str:
    """What to think of a run's times where ``count`` requests were stopped in the middle; empty for none."""
    if not count:
        return ""
    several = "requests were" if count > 1 else "request was"
    return f"{count} {several} in flight while a process stood still (stopped or suspended): its time counts that"


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
    stopped: bool | None = None  # whether the process was stopped, or the machine asleep, meanwhile; None: unknown
    launch: int = 1  # which start of the case's processes answered, from 1


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
    COMPARABLE: ClassVar[tuple[str, ...]] = separating(SETTINGS.values())


IDENTITY_COLUMNS = tuple(f.name for f in fields(RunIdentity))

TTFT_COLUMNS, P99_COLUMNS, DECODE_COLUMNS = tuple(columns.TTFT), tuple(columns.P99), tuple(columns.DECODE)
COLUMNS: dict[Phase, tuple[str, ...]] = {"ttft": TTFT_COLUMNS, "p99": P99_COLUMNS, "decode": DECODE_COLUMNS}
