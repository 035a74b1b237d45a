"""PYTHONPATH picks the package. Device ms of whole prefills: single with pauses, and 105 in a row; kernels by name.

python bench_forward.py LABEL 10,50,100 [LENGTHS TO PROFILE]
"""
import sys, time, statistics, torch
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
label = sys.argv[1]; lengths = [int(x) for x in sys.argv[2].split(",")]
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
fwd = FusedForward(loaded.module)
cache = fwd.allocate_cache(512)
ids = torch.randint(32000, (512,), device="cuda"); start = torch.zeros(1, dtype=torch.long, device="cuda"); last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")
graphs = {}
t0 = time.time()
with torch.inference_mode():
    for n in sorted(lengths, reverse=True):
        last.fill_(n - 1)
        s = torch.cuda.Stream(); s.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(s): fwd.prefill(ids, n, start, last, cache, logits)
        s.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g): fwd.prefill(ids, n, start, last, cache, logits)
        graphs[n] = g
print(label, f"captured in {time.time()-t0:.1f} s")
def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)
single = {}; row = {}
for n in lengths:
    last.fill_(n - 1); ts = []
    for i in range(14):
        ts.append(one(graphs[n])); time.sleep(0.03)
    single[n] = statistics.median(ts[2:])
for n in lengths:
    last.fill_(n - 1); time.sleep(0.5)
    ts = [one(graphs[n]) for i in range(105)]
    row[n] = statistics.mean(ts)
print(label, "single", " ".join(f"{n}:{single[n]:.3f}" for n in lengths), f"mean {statistics.mean(single.values()):.3f}")
print(label, "in row", " ".join(f"{n}:{row[n]:.3f}" for n in lengths), f"mean {statistics.mean(row.values()):.3f}")
if len(sys.argv) > 3:
    from torch.profiler import profile, ProfilerActivity
    for n in [int(x) for x in sys.argv[3].split(",")]:
        last.fill_(n - 1)
        with profile(activities=[ProfilerActivity.CUDA]) as prof:
            for _ in range(3): graphs[n].replay(); torch.cuda.synchronize(); time.sleep(0.02)
        tot = {}
        for e in prof.events():
            if e.device_type.name == "CUDA":
                d = tot.setdefault(e.name[:60], [0, 0.0]); d[0] += 1; d[1] += e.device_time / 3e3
        print(label, n, " ; ".join(f"{k} x{c//3} {t:.3f}" for k, (c, t) in sorted(tot.items(), key=lambda kv: -kv[1][1])[:14]))
