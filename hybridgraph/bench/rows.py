"""What a row of a result file says of its samples: one function a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hybridgraph.bench.samples import Sample
from hybridgraph.bench.stats import mean, percentile, spread
from hybridgraph.contract import GRAPH_PATHS, SourceInfo
from hybridgraph.roofline import decode_bytes, decode_floor_ms, prefill_floor_ms, sustained_floor_ms

Row = dict[str, Any]


def ttft_row(samples: Sequence[Sample], info: SourceInfo) -> Row:
    """One length: the protocol's TTFT requests (cold and first-seen ones among them), and every warm request apart."""
    protocol = [s for s in samples if s.phase == "ttft"]
    ttft = [s.ttft_ms for s in protocol]
    warm = [s for s in samples if s.warmth == "warm"]
    warm_mean = mean([s.ttft_ms for s in warm])
    floor = prefill_floor_ms(info.shape, info.rates, samples[0].prompt_length)
    return {
        "prompt_length": samples[0].prompt_length,
        "mean_ms": mean(ttft),
        "std_ms": spread(ttft),
        "min_ms": min(ttft),
        "max_ms": max(ttft),
        "samples": len(ttft),
        "cold_ms": mean([s.ttft_ms for s in samples if s.warmth == "cold"]),
        "first_seen_ms": mean([s.ttft_ms for s in samples if s.warmth == "first_seen"]),
        "warm_mean_ms": warm_mean,
        "warm_p50_ms": percentile([s.ttft_ms for s in warm], 50) if warm else None,
        "warm_samples": len(warm),
        "device_ms": mean(known(s.device_ms for s in warm)),
        "engine_ttft_ms": mean(known(s.engine_ttft_ms for s in warm)),
        "floor_ms": floor,
        "floor_ratio": warm_mean / floor if warm_mean is not None and floor else None,
        "sustained_floor_ms": sustained_floor_ms(info.shape, info.rates, samples[0].prompt_length),
        "gc_collections": sum(s.gc_collections for s in samples),
        "overflowed": _num_true(sample.overflowed for sample in samples),
        "stopped": _num_true(sample.stopped for sample in samples),
        "launches": len({sample.launch for sample in samples}),
    } | _graph_paths(samples)


def p99_row(samples: Sequence[Sample]) -> Row:
    """One length's tail. With 100 samples the P99 is the second largest: a weak bound, so the maximum stands by it."""
    ttft = [s.ttft_ms for s in samples]
    device = known(s.device_ms for s in samples)
    return {
        "prompt_length": samples[0].prompt_length,
        "mean_ms": mean(ttft),
        "p99_ms": percentile(ttft, 99),
        "samples": len(ttft),
        "p50_ms": percentile(ttft, 50),
        "min_ms": min(ttft),
        "max_ms": max(ttft),
        "device_mean_ms": mean(device),
        "device_p99_ms": percentile(device, 99) if device else None,
        "warm_samples": sum(s.warmth == "warm" for s in samples),
        "gc_collections": sum(s.gc_collections for s in samples),
        "overflowed": _num_true(sample.overflowed for sample in samples),
        "stopped": _num_true(sample.stopped for sample in samples),
        "launches": len({sample.launch for sample in samples}),
    } | _graph_paths(samples)


def decode_row(samples: Sequence[Sample], info: SourceInfo) -> Row:
    """One length's ITL over every pair of consecutive tokens, and the bandwidth that it amounts to.

    The first answer stands apart: in it a case allocates, and compiles, what it decodes with.
    """
    itl = [value for sample in samples if sample.warmth == "warm" for value in sample.itl_ms]
    first = [value for sample in samples if sample.warmth != "warm" for value in sample.itl_ms]
    itl_mean = mean(itl)
    length, new_tokens = samples[0].prompt_length, len(samples[0].itl_ms)
    context = length + (new_tokens + 1) // 2  # the middle of the answer
    read = decode_bytes(info.shape, context) if info.shape else None
    return {
        "prompt_length": length,
        "new_tokens": new_tokens,
        "itl_mean_ms": itl_mean,
        "itl_p50_ms": percentile(itl, 50),
        "itl_p99_ms": percentile(itl, 99),
        "tokens_per_s": 1e3 / itl_mean if itl_mean else None,
        "gb_per_s": read / itl_mean / 1e6 if read and itl_mean else None,
        "floor_ms": decode_floor_ms(info.shape, info.rates, context),
        "samples": len(itl),
        "first_itl_ms": mean(first),
        "overflowed": _num_true(sample.overflowed for sample in samples),
        "stopped": _num_true(sample.stopped for sample in samples),
        "launches": len({sample.launch for sample in samples}),
    }


def known(values: Iterable[float | None]) -> list[float]:
    """The values that are not None."""
    return [value for value in values if value is not None]


def _num_true(marks: Iterable[bool | None]) -> int | None:
    """How many are set; None where nobody looked."""
    seen = [mark for mark in marks if mark is not None]
    return sum(seen) if seen else None


def _graph_paths(samples: Sequence[Sample]) -> Row:
    counts = Counter(sample.graph_path for sample in samples)
    return {path: counts[path] for path in GRAPH_PATHS}
