# ruff: noqa
"""How long a chip at its power cap takes to settle: means of 50 replays of 31 GEMMs each, us a GEMM, one after another.

What it takes from `streamk_bound.py` beside it is everything in front of that script's loop.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

exec(Path(__file__).with_name("streamk_bound.py").read_text().split("for n in map")[0])
n = 300
x = torch.randn(n, 4096, device="cuda", dtype=torch.float16)
out = torch.empty(n, 11008, device="cuda", dtype=torch.float16)
full = torch.empty(n, 22016, device="cuda", dtype=torch.float16)
ways = {
    "cuBLAS": lambda w: torch.mm(x, w.T, out=full),
    "cuBLAS+SwiGLU": lambda w: triton.swiglu(F.linear(x, w)),
    "custom2": lambda w: Gemm("store_swiglu", tile_for(n, 2))(x, w, out, overlap=True),
}
graphs = {name: captured(step) for name, step in ways.items()}


def row(name, count):
    ts = [1e3 * timed(graphs[name]) / LAYERS for _ in range(count)]
    return " ".join(f"{statistics.mean(ts[i : i + 50]):.1f}" for i in range(0, count, 50))


for order in (list(ways), list(ways)[::-1]):
    time.sleep(1)
    for name in order:
        print("after rest" if name == order[0] else "follows", name, row(name, 500), flush=True)
for name in ways:
    time.sleep(1)
    print("rested", name, row(name, 800), flush=True)
