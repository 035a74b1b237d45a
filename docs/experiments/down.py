"""The down projection above 300 tokens: cuBLAS, cuBLAS over more rows than the prompt has, or the custom GEMM.

Prints device ms of a prefill, 5 ms apart and back to back (mean of the last 60 of 100), for each in turns.
"""

import statistics
import sys
import time
from dataclasses import replace

import torch
import triton

from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels.hopper import HopperKernels, limits_on
from hybridgraph.forward.kernels.rowwise import swiglu_kernel
from hybridgraph.model import load_model

chip = torch.cuda.get_device_name()
print(chip, flush=True)
device = torch.device("cuda")
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
ids = torch.randint(32000, (512,), device=device)
start = torch.zeros(1, dtype=torch.long, device=device)
last = torch.zeros(1, dtype=torch.long, device=device)
logits = torch.empty(32000, dtype=torch.float16, device=device)


class Padded(HopperKernels):
    """cuBLAS adds the down projection of ``rows`` rows, of which the last are whatever memory holds."""

    def __init__(self, rows):
        super().__init__(limits_on(chip))
        self.rows = rows

    def embed_norm(self, ids, start, length, table, weight, eps):
        hidden, normed = super().embed_norm(ids, start, length, table, weight, eps)
        self.hidden = table.new_zeros(self.rows, table.shape[1])
        self.hidden[:length].copy_(hidden)
        return self.hidden[:length], normed

    def swiglu(self, gate_up):
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        self.gated = gate_up.new_empty(self.rows, width)
        grid = (rows, triton.cdiv(width, 1024))
        self._launch(swiglu_kernel, grid, (gate_up, self.gated), WIDTH=width, BLOCK=1024, num_warps=4)
        return self.gated[:rows]

    def linear_add_norm(self, hidden, rows, weight, norm, eps):
        if weight.shape[1] > weight.shape[0]:
            torch.addmm(self.hidden, self.gated, weight.T, out=self.hidden)
            return self.norm(hidden, norm, eps)
        return super().linear_add_norm(hidden, rows, weight, norm, eps)


def one(graph):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    graph.replay()
    b.record()
    b.synchronize()
    return a.elapsed_time(b)


def captured(kernels, n):
    forward = FusedForward(loaded.module, kernels)
    cache = forward.allocate_cache(512)
    forward.prepare([n])
    forward.prefill(ids, n, start, last, cache, logits)
    torch.cuda.synchronize()
    finite = bool(logits.isfinite().all())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward.prefill(ids, n, start, last, cache, logits)
    return graph, (forward, cache, kernels), finite


with torch.inference_mode():
    torch.empty(1 << 30, dtype=torch.float16, device=device).normal_()  # what later buffers hold
    for n in [int(x) for x in sys.argv[1].split(",")]:
        last.fill_(n - 1)
        limits = limits_on(chip)
        ways = {"base": HopperKernels(limits), "custom": HopperKernels(replace(limits, added=512))}
        ways |= {f"rows {m}": Padded(m) for m in (n + 8, 408, 416, 448) if n < m <= n + 60}
        graphs = {}
        for name, kernels in ways.items():
            try:
                graphs[name] = captured(kernels, n)
            except RuntimeError as error:
                print(n, name, "failed:", str(error)[:100])
        apart, row = {x: [] for x in graphs}, {x: [] for x in graphs}
        for _ in range(3):
            for name, (graph, *_) in graphs.items():
                for i in range(9):
                    t = one(graph)
                    time.sleep(0.005)
                    if i > 1:
                        apart[name].append(t)
            for name, (graph, *_) in graphs.items():
                row[name].append(statistics.mean([one(graph) for _ in range(100)][40:]))
        for name, (_, _, finite) in graphs.items():
            print(
                f"{n} {name:9} apart {statistics.median(apart[name]):.3f} row {statistics.mean(row[name]):.3f} "
                f"({' '.join(f'{x:.2f}' for x in row[name])}) finite {finite} {bool(logits.isfinite().all())}",
                flush=True,
            )
