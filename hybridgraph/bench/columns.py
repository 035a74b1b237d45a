"""What every column of the result files is: its type, its unit, and what it means. ``docs/files.md`` is made of this.

The files have their columns in this order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column; an empty cell is a number that is not known."""

    type: str  # as pandas reads it: "int", "float", "text"
    unit: str
    meaning: str


LENGTH = Column("int", "tokens", "number of prompt ids of the row's requests")
PATHS = {
    "exact": Column("int", "requests", "answered by a graph of exactly their length"),
    "padded": Column("int", "requests", "answered by a longer graph"),
    "captured": Column("int", "requests", "answered by a graph that was captured while they waited"),
    "eager": Column("int", "requests", "answered without a graph"),
}
CHUNKED = Column("int", "requests", "answered by several graphs, one after the other")
OVERFLOWED = Column("int", "requests", "whose last logits were not all finite; empty where nobody looked")
LAUNCHES = Column("int", "", "how many starts of the case's processes the requests are of")
STOPPED = Column("int", "requests", "during which a process was stopped, or the machine asleep; empty where unknown")
COLLECTIONS = Column("int", "", "runs of Python's garbage collector inside the requests")
IDENTITY = {
    "graph_backend": Column(
        "text", "", "`cuda`, `emulated` (no GPU: not a CUDA Graph result), `none`, or an engine's own"
    ),
    "model": Column("text", "", "as `--model` names it"),
    "dtype": Column("text", "", "precision of weights and activations"),
    "load_format": Column("text", "", "`dummy` (random weights) or `auto` (real ones)"),
    "device": Column("text", "", "name of the GPU or the processor"),
    "run_id": Column("text", "", "the run that the row is of; its samples and `environment.json` have the same"),
    "ops": Column("text", "", "implementation of the dynamic operations"),
    "forward": Column("text", "", "`hf`, `fused`, or an engine's own"),
    "sampling": Column("text", "", "`T=0.7` or `greedy`"),
    "seed": Column("int", "", "seed of weights, prompts and sampling"),
    "protocol": Column("text", "", "`paper`, or how it differs"),
    "started": Column("text", "UTC", "when the run began, ISO 8601"),
    "commit": Column(
        "text", "", "commit of this project, with `-dirty` where files had changed; empty outside a checkout"
    ),
}

TTFT = {
    "prompt_length": LENGTH,
    "mean_ms": Column("float", "ms", "mean over the protocol's TTFT requests, cold and first-seen ones among them"),
    "std_ms": Column("float", "ms", "their sample standard deviation; empty for one request"),
    "min_ms": Column("float", "ms", "the least of them"),
    "max_ms": Column("float", "ms", "the largest of them"),
    "samples": Column("int", "requests", "how many they are"),
    "first_seen_ms": Column(
        "float", "ms", "the first request at this length; empty where that was the process's first"
    ),
    "warm_mean_ms": Column(
        "float", "ms", "mean over every warm request of this length, those of the P99 phase as well"
    ),
    "device_ms": Column("float", "ms", "mean of the warm requests' time on the device"),
    "floor_ms": Column("float", "ms", "the least time that the hardware needs, by rates measured in this run"),
    "floor_ratio": Column("float", "", "`warm_mean_ms` over `floor_ms`"),
    **PATHS,
    **IDENTITY,
    "cold_ms": Column("float", "ms", "the process's first request, where it was of this length"),
    "warm_p50_ms": Column("float", "ms", "median of the warm requests"),
    "warm_samples": Column("int", "requests", "number of warm requests"),
    "engine_ttft_ms": Column("float", "ms", "the engine's own figure, mean of the warm requests, where it has one"),
    "gc_collections": COLLECTIONS,
    "chunked": CHUNKED,
    "sustained_floor_ms": Column("float", "ms", "the floor at the matrix rate that power allows without a pause"),
    "overflowed": OVERFLOWED,
    "stopped": STOPPED,
    "launches": LAUNCHES,
}
P99 = {
    "prompt_length": LENGTH,
    "mean_ms": Column("float", "ms", "mean TTFT of the P99 phase"),
    "p99_ms": Column("float", "ms", "its 99th percentile by nearest rank: of 100 requests the second largest"),
    "samples": Column("int", "requests", "number of requests in the phase"),
    **PATHS,
    **IDENTITY,
    "p50_ms": Column("float", "ms", "median TTFT of the phase"),
    "min_ms": Column("float", "ms", "the least"),
    "max_ms": Column("float", "ms", "the largest"),
    "device_mean_ms": Column("float", "ms", "mean time on the device"),
    "device_p99_ms": Column("float", "ms", "99th percentile of the time on the device"),
    "gc_collections": COLLECTIONS,
    "chunked": CHUNKED,
    "warm_samples": Column("int", "requests", "how many of them were warm"),
    "overflowed": OVERFLOWED,
    "stopped": STOPPED,
    "launches": LAUNCHES,
}
DECODE = {
    "prompt_length": LENGTH,
    "new_tokens": Column("int", "tokens", "tokens after the first one in each answer"),
    "itl_mean_ms": Column("float", "ms", "mean ITL over the warm answers"),
    "itl_p50_ms": Column("float", "ms", "median ITL"),
    "itl_p99_ms": Column("float", "ms", "99th percentile of ITL, by nearest rank"),
    "tokens_per_s": Column("float", "1/s", "1,000 over `itl_mean_ms`"),
    "gb_per_s": Column("float", "GB/s", "weights and cache read for a token, over `itl_mean_ms`"),
    "floor_ms": Column("float", "ms", "the least time for a token: those bytes over the measured bandwidth"),
    **IDENTITY,
    "samples": Column("int", "", "number of ITLs behind the row"),
    "first_itl_ms": Column("float", "ms", "mean ITL of the first answer at this length, which stands apart"),
    "overflowed": OVERFLOWED,
    "stopped": STOPPED,
    "launches": LAUNCHES,
}
SAMPLE = {
    "run_id": IDENTITY["run_id"],
    "phase": Column("text", "", "`ttft`, `p99` or `decode`"),
    "prompt_length": LENGTH,
    "iteration": Column("int", "", "number of the request within its row, from 0"),
    "warmth": Column("text", "", "`cold`, `first_seen` or `warm`"),
    "ttft_ms": Column("float", "ms", "from the ids as a list to the first sampled id as an int, at the client"),
    "device_ms": Column(
        "float", "ms", "from the prompt's first operation on the device to its sampled id; null if unknown"
    ),
    "engine_ttft_ms": Column("float", "ms", "the engine's own figure, or null"),
    "graph_path": Column("text", "", "`exact`, `padded`, `chunked`, `captured`, `eager`, or null"),
    "itl_ms": Column("list of float", "ms", "time between each two consecutive tokens"),
    "gc_collections": Column("int", "", "runs of Python's garbage collector inside the request"),
    "overflowed": Column("bool", "", "whether its last logits were not all finite; null where nobody looked"),
    "stopped": Column("bool", "", "whether a process was stopped, or the machine asleep, meanwhile; null if unknown"),
    "launch": Column("int", "", "which start of the case's processes answered, from 1"),
}
