import statistics, time
import pynvml, torch
from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.hf import StaticHFForward
from hybridgraph.model import load_model
LENGTHS = (10, 200, 300, 400)
pynvml.nvmlInit(); nvml = pynvml.nvmlDeviceGetHandleByIndex(0)
print(torch.cuda.get_device_name(), flush=True)
device = torch.device("cuda")
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
ids = torch.randint(32000, (512,), device=device)
start = torch.zeros(1, dtype=torch.long, device=device); last = torch.zeros(1, dtype=torch.long, device=device)
logits = torch.empty(32000, dtype=torch.float16, device=device)
def capture(forward, lengths=LENGTHS):
    cache = forward.allocate_cache(512); forward.prepare(lengths); found = {}
    for n in lengths:
        last.fill_(n - 1); forward.prefill(ids, n, start, last, cache, logits); torch.cuda.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g): forward.prefill(ids, n, start, last, cache, logits)
        found[n] = g
    return found
def timed(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)
def measure(what, graphs):
    for n in (200, 400):
        g = graphs[n]; last.fill_(n - 1); time.sleep(0.3); apart = []
        for i in range(12):
            t = timed(g); time.sleep(0.005)
            if i > 3: apart.append(t)
        row = [timed(g) for _ in range(140)][40:]
        c, w = pynvml.nvmlDeviceGetClockInfo(nvml, pynvml.NVML_CLOCK_SM), pynvml.nvmlDeviceGetPowerUsage(nvml) / 1000
        print(f"{what:26} {n} apart {statistics.mean(apart):.3f} row {statistics.mean(row):.3f} clock {c} W {w:.0f} finite {bool(logits.isfinite().all())} std {float(logits.float().std()):.3f}", flush=True)
def same(ws):
    return all(torch.equal(p, w) for p, w in zip(loaded.module.parameters(), ws, strict=True))
with torch.inference_mode():
    full = [p.detach().clone() for p in loaded.module.parameters()]
    short = [p.bfloat16().half() for p in full]
    forward = FusedForward(loaded.module)
    graphs = capture(forward)
    print("as loaded", same(full))
    measure("merged, not copied", graphs)
    for p, w in zip(loaded.module.parameters(), full, strict=True): p.detach().copy_(w)
    print("as loaded", same(full))
    measure("full copied", graphs)
    for p, w in zip(loaded.module.parameters(), short, strict=True): p.detach().copy_(w)
    measure("short copied", graphs)
    for p, w in zip(loaded.module.parameters(), full, strict=True): p.detach().copy_(w)
    plain = capture(StaticHFForward(loaded.module, 512))
    measure("with hf graphs", graphs)
    again = capture(forward, (10, 50, 100, 150, 200, 250, 300, 350, 400))
    measure("nine lengths", again)
    from torch.profiler import profile, ProfilerActivity
    for name, gs in (("graphs", graphs), ("again", again)):
        with profile(activities=[ProfilerActivity.CUDA]) as prof:
            gs[400].replay(); torch.cuda.synchronize()
        rows = sorted(prof.key_averages(), key=lambda e: -e.device_time_total)[:9]
        for e in rows: print(name, e.count, f"{e.device_time_total/max(1,e.count):.1f}", e.key[:110])
