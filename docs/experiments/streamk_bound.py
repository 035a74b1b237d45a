# ruff: noqa
"""What a stream-K gate/up GEMM could reach above 264 tokens, before it is written.

The custom GEMM of 128 rows a block, on as many rows as fill the chip once (132 blocks), takes t for 64 steps of the
reduction. 172 blocks dealt out evenly take 84 to 86 steps, and some microseconds to add up the split ones. Compared
with cuBLAS and SwiGLU on all rows, and with the custom GEMM in two waves. us a layer, over 31 different weights.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

from hybridgraph.forward.kernels.gemm import Gemm
from hybridgraph.forward.kernels.hopper import tile_for
from hybridgraph.forward.kernels.triton import TritonKernels

LAYERS = 31
print(torch.cuda.get_device_name(), flush=True)
torch.set_grad_enabled(False)
weights = [torch.randn(22016, 4096, device="cuda", dtype=torch.float16) * 0.02 for _ in range(LAYERS)]
triton = TritonKernels()


def timed(graph):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    graph.replay()
    b.record()
    b.synchronize()
    return a.elapsed_time(b)


def captured(step):
    step(weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            step(weight)
    return graph


for n in map(int, sys.argv[1].split(",")):
    x = torch.randn(n, 4096, device="cuda", dtype=torch.float16)
    out = torch.empty(n, 11008, device="cuda", dtype=torch.float16)
    part = torch.empty(n, 8448, device="cuda", dtype=torch.float16)
    full = torch.empty(n, 22016, device="cuda", dtype=torch.float16)
    ways = {
        "cuBLAS": lambda w: torch.mm(x, w.T, out=full),
        "cuBLAS+SwiGLU": lambda w: triton.swiglu(F.linear(x, w)),
        "custom, two waves": lambda w: Gemm("store_swiglu", tile_for(n, 2))(x, w, out, overlap=True),
        "custom, 132 blocks": lambda w: Gemm("store_swiglu", tile_for(n, 2))(x, w[:16896], part, overlap=True),
    }
    graphs = {name: captured(step) for name, step in ways.items()}
    apart, row = {w: [] for w in ways}, {w: [] for w in ways}
    for _ in range(3):
        for way, graph in graphs.items():
            for i in range(9):
                t = timed(graph)
                time.sleep(0.005)
                if i > 1:
                    apart[way].append(t)
        for way, graph in graphs.items():
            row[way].append(statistics.mean([timed(graph) for _ in range(200)][80:]))
    for way in ways:
        a, r = (1e3 * statistics.median(x) / LAYERS for x in (apart[way], row[way]))
        more = f"   even: {a * 86 / 64 + 5:.1f} and {r * 86 / 64 + 5:.1f}" if "132" in way else ""
        print(f"{n} {way:20} apart {a:6.1f} us, row {r:6.1f} us{more}", flush=True)
