"""Is a longer graph quicker? fused (with H100 limits) device ms apart and back to back."""
import statistics, sys, time
import torch
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import hopper
from hybridgraph.forward.kernels.hopper import HopperKernels
print(torch.cuda.get_device_name(), flush=True)
device = torch.device("cuda")
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
ids = torch.randint(32000, (512,), device="cuda")
start = torch.zeros(1, dtype=torch.long, device="cuda"); last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")
forward = FusedForward(loaded.module, HopperKernels()); cache = forward.allocate_cache(512)
def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)
NEW = dict(MOST_TOKENS_PROJECTED=96, MOST_TOKENS_SWIGLU=264, MOST_TOKENS_ADDED=300, MOST_TOKENS_SQUARE=136)
OLD = {k: getattr(hopper, k) for k in NEW}
def setl(d):
    for k, v in d.items(): setattr(hopper, k, v)
GROUPS = [[400, 408, 410], [320, 330, 336, 344, 350], [290, 310], [300, 304, 310, 312], [350, 344], [370, 376], [420, 440], [450, 470], [500, 496, 512]]
with torch.inference_mode():
    for lim, groups in (("old", GROUPS), ("new", [[70, 80, 96], [150], [200], [250, 256], [290, 296, 300], [300]])):
        setl(OLD if lim == "old" else NEW)
        for group in groups:
            graphs = {}
            for n in group:
                last.fill_(min(group) - 1)
                forward.prepare([n]); forward.prefill(ids, n, start, last, cache, logits); torch.cuda.synchronize()
                g = torch.cuda.CUDAGraph()
                with torch.cuda.graph(g): forward.prefill(ids, n, start, last, cache, logits)
                graphs[n] = g
            apart, row = {x: [] for x in graphs}, {x: [] for x in graphs}
            for rnd in range(3):
                for n, g in graphs.items():
                    for i in range(9):
                        t = one(g); time.sleep(0.005)
                        if i > 1: apart[n].append(t)
                for n, g in graphs.items():
                    time.sleep(0.05)
                    row[n].append(statistics.mean([one(g) for _ in range(50)][20:]))
            for n in graphs:
                print(f"{lim} {n} apart {statistics.median(apart[n]):.3f}  row {statistics.mean(row[n]):.3f} ({' '.join('%.2f' % x for x in row[n])})", flush=True)
