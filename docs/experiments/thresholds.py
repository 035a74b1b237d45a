"""Which GEMM serves how many tokens, by chip: device ms of a prefill, apart and back to back."""
import statistics, subprocess, sys, time
import torch
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import hopper
from hybridgraph.forward.kernels.hopper import HopperKernels

print(torch.cuda.get_device_name(), flush=True)
NAMES = dict(p="MOST_TOKENS_PROJECTED", s="MOST_TOKENS_SWIGLU", d="MOST_TOKENS_ADDED", o="MOST_TOKENS_SQUARE")
BASE = {k: getattr(hopper, n) for k, n in NAMES.items()}

def settings(name):
    chosen = dict(BASE)
    if name != "base":
        for part in name.split(","):
            chosen[part[0]] = 512 if part[1] == "+" else 0
    return chosen

PLAN = {
    50: ["base", "p-", "s-", "d-", "o-"],
    100: ["base", "p+", "s-", "d-", "o-"],
    150: ["base", "p+", "s-", "d-", "o-"],
    200: ["base", "p+", "s-", "d-", "o-", "o-,d-"],
    250: ["base", "p+", "s+", "d+", "o+", "s+,d+", "s+,d+,o+"],
    300: ["base", "p+", "s+", "d+", "o+", "s+,d+", "s+,d+,o+"],
    350: ["base", "p+", "d+", "o+"],
    70: ["base", "p+", "o-"],
    80: ["base", "p+", "o-"],
    110: ["base", "p+", "o-"],
    120: ["base", "o-"],
    130: ["base", "o-", "o-,d-"],
    140: ["base", "o-"],
    170: ["base", "o-"],
    210: ["base", "s-", "o+", "d-"],
    220: ["base", "s-", "d-"],
    230: ["base", "s-", "d-"],
    240: ["base", "s-", "d-"],
    256: ["d+", "s+,d+"],
    264: ["d+", "s+,d+"],
    270: ["d+", "s+,d+"],
    280: ["base", "d+", "s+,d+"],
    320: ["base", "d+"],
    340: ["base", "d+"],
    360: ["base", "d+"],
    384: ["base", "d+"],
    400: ["base", "d+"],
    416: ["base", "d+"],
    432: ["base", "d+"],
    448: ["base", "d+"],
    480: ["base", "d+"],
}
device = torch.device("cuda")
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
ids = torch.randint(32000, (512,), device="cuda")
start = torch.zeros(1, dtype=torch.long, device="cuda")
last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")
forward = FusedForward(loaded.module, HopperKernels())
cache = forward.allocate_cache(512)

def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize()
    return a.elapsed_time(b)

with torch.inference_mode():
    for n, names in PLAN.items():
        last.fill_(n - 1)
        graphs, refs = {}, {}
        for name in names:
            for k, v in settings(name).items():
                setattr(hopper, NAMES[k], v)
            try:
                forward.prepare([n])
                forward.prefill(ids, n, start, last, cache, logits)
            except Exception as e:
                print(n, name, "failed", str(e)[:200]); continue
            torch.cuda.synchronize()
            refs[name] = logits.float().clone()
            g = torch.cuda.CUDAGraph()
            with torch.cuda.graph(g):
                forward.prefill(ids, n, start, last, cache, logits)
            graphs[name] = g
        apart, row = {x: [] for x in graphs}, {x: [] for x in graphs}
        for rnd in range(3):
            for name, g in graphs.items():
                for i in range(9):
                    t = one(g); time.sleep(0.005)
                    if i > 1: apart[name].append(t)
            for name, g in graphs.items():
                time.sleep(0.05)
                row[name].append(statistics.mean([one(g) for _ in range(50)][20:]))
        for name in graphs:
            d = ((refs[name] - refs[names[0]]).norm() / refs[names[0]].norm()).item()
            print(f"{n} {name:9s} apart {statistics.median(apart[name]):.3f}  row {statistics.mean(row[name]):.3f} ({' '.join('%.2f' % x for x in row[name])})  diff {d:.1e}", flush=True)
