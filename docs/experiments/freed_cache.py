"""What the bits of the weights cost: the fused prefill with float16 weights of 11 significant bits and of 8.

Llama-2-7B was trained and released in bfloat16, so that its float16 weights are bfloat16 values: their last three bits
are zero. Prints device ms of a replay, back to back (mean of the last 100 of 140) and 5 ms apart, for both, in turns.
"""

import statistics
import time

import pynvml
import torch

from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.hf import StaticHFForward
from hybridgraph.model import load_model

LENGTHS = (10, 50, 100, 150, 200, 250, 300, 350, 400)
pynvml.nvmlInit()
nvml = pynvml.nvmlDeviceGetHandleByIndex(0)
print(torch.cuda.get_device_name(), flush=True)
device = torch.device("cuda")
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
ids = torch.randint(32000, (512,), device=device)
start = torch.zeros(1, dtype=torch.long, device=device)
last = torch.zeros(1, dtype=torch.long, device=device)
logits = torch.empty(32000, dtype=torch.float16, device=device)


def one(graph):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    graph.replay()
    b.record()
    b.synchronize()
    return a.elapsed_time(b)


def graphs_of(forward):
    cache = forward.allocate_cache(512)
    forward.prepare(LENGTHS)
    found = {}
    for n in LENGTHS:
        last.fill_(n - 1)
        forward.prefill(ids, n, start, last, cache, logits)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward.prefill(ids, n, start, last, cache, logits)
        found[n] = graph
    return found


with torch.inference_mode():
    full = [p.detach().clone() for p in loaded.module.parameters()]
    short = [p.bfloat16().half() for p in full]
    fused = graphs_of(FusedForward(loaded.module))
    plain = graphs_of(StaticHFForward(loaded.module, 512))
    sets = {"11 bits": full, "8 bits": short}
    apart, row, clock, watts = (
        {(g, s, n): [] for g in ("fused", "hf") for s in sets for n in LENGTHS} for _ in range(4)
    )
    for turn in range(3):
        for name, weights in sets.items():
            for p, w in zip(loaded.module.parameters(), weights, strict=True):
                p.detach().copy_(w)
            for kind, graphs in (("fused", fused), ("hf", plain)):
                if kind == "hf" and turn == 2:
                    continue
                for n, graph in graphs.items():
                    last.fill_(n - 1)
                    key = (kind, name, n)
                    for i in range(8):
                        t = one(graph)
                        time.sleep(0.005)
                        if i > 1:
                            apart[key].append(t)
                    row[key].append(statistics.mean([one(graph) for _ in range(140)][40:]))
                    clock[key].append(pynvml.nvmlDeviceGetClockInfo(nvml, pynvml.NVML_CLOCK_SM))
                    watts[key].append(pynvml.nvmlDeviceGetPowerUsage(nvml) / 1000)
    for kind in ("fused", "hf"):
        for what, table in (("apart", apart), ("row", row), ("clock", clock), ("watts", watts)):
            for name in sets:
                values = [statistics.mean(table[kind, name, n]) for n in LENGTHS]
                mean = statistics.mean(values)
                print(f"{kind:5} {what:5} {name:7}", *(f"{v:8.3f}" for v in values), f"mean {mean:.3f}", flush=True)
