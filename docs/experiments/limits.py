"""Each limit between custom GEMMs and cuBLAS, on either side of it, as rows long enough for the chip to settle.

Prints device ms of a prefill with the kernels that the limits choose and with the others of one projection, in turns:
5 ms apart (median), and back to back (mean of the last 70 of 110 replays).

    python limits.py projected:64,80 square:136,200
"""

import statistics
import sys
import time
from dataclasses import replace

import torch

from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels.hopper import HopperKernels, limits_on
from hybridgraph.model import load_model

ROUNDS = 3

chip = torch.cuda.get_device_name()
device = torch.device("cuda")
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
ids = torch.randint(32000, (512,), device=device)
start = torch.zeros(1, dtype=torch.long, device=device)
last = torch.zeros(1, dtype=torch.long, device=device)
logits = torch.empty(32000, dtype=torch.float16, device=device)


def timed(graph):
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def captured(limits, n):
    """A graph, and what it needs to live: graphs do not hold the cache."""
    forward = FusedForward(loaded.module, HopperKernels(limits))
    cache = forward.allocate_cache(512)
    forward.prepare([n])
    forward.prefill(ids, n, start, last, cache, logits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward.prefill(ids, n, start, last, cache, logits)
    return graph, forward, cache


def other_side(limits, name, n):
    at = getattr(limits, name)
    return ("cuBLAS", n - 1) if n <= at else ("custom", n)


def compared(name, n):
    limits = limits_on(chip)
    other, limit = other_side(limits, name, n)
    base = "custom" if other == "cuBLAS" else "cuBLAS"
    last.fill_(n - 1)
    graphs = {base: captured(limits, n), other: captured(replace(limits, **{name: limit}), n)}
    apart, rows = {way: [] for way in graphs}, {way: [] for way in graphs}
    for _ in range(ROUNDS):
        for way, (graph, *_) in graphs.items():
            for i in range(9):
                apart[way].append(timed(graph))
                time.sleep(0.005)
                if i < 2:
                    apart[way].pop()
        for way, (graph, *_) in graphs.items():
            rows[way].append(statistics.mean([timed(graph) for _ in range(110)][40:]))
    text = f"{name:9} {n:3}  now {base}"
    for title, times in (("apart", apart), ("row", rows)):
        now, then = (statistics.median(times[way]) for way in (base, other))
        text += f"  {title} {now:.3f} -> {then:.3f} ({100 * (then / now - 1):+.1f} %)"
    spread = max((max(r) - min(r)) / min(r) for r in rows.values())
    print(text, f" rows differ by {100 * spread:.1f} %  finite {bool(logits.isfinite().all())}", flush=True)


print(chip, flush=True)
with torch.inference_mode():
    for argument in sys.argv[1:]:
        name, lengths = argument.split(":")
        for n in map(int, lengths.split(",")):
            try:
                compared(name, n)
            except RuntimeError as error:
                print(name, n, "failed:", str(error)[:100], flush=True)
