import sys, time, statistics, torch, pynvml
pynvml.nvmlInit(); hd = pynvml.nvmlDeviceGetHandleByIndex(0)
NW = 6
SHAPES = {"down": (4096, 11008), "out": (4096, 4096), "gu": (22016, 4096), "qkv": (12288, 4096)}
SETS = {"down": (200, 208, 216, 250, 248, 256, 300, 304, 310, 312, 350, 344, 340, 400, 408, 410, 424, 400), "out": (200, 216, 250, 248, 256, 300, 304, 310, 350, 344, 400, 408, 410, 400), "gu": (250, 256, 300, 310, 350, 360, 400, 408, 410, 400), "qkv": (150, 152, 160, 168, 176, 250, 256, 300, 312, 350, 360, 400, 408)}
def graph_of(f):
    f(0); torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for i in range(NW): f(i)
    return g
def ev(): return torch.cuda.Event(enable_timing=True)
def sustained(g, warm=0.15, meas=0.2):
    for _ in range(5): g.replay()
    torch.cuda.synchronize(); t = time.perf_counter()
    for _ in range(20): g.replay()
    torch.cuda.synchronize(); per = (time.perf_counter() - t) / 20
    for _ in range(int(warm / per)): g.replay()
    a, b = ev(), ev(); n = int(meas / per); a.record()
    for _ in range(n): g.replay()
    b.record(); b.synchronize()
    return a.elapsed_time(b) / n / NW * 1e3
def burst(g):
    ts = []
    for _ in range(9):
        time.sleep(0.006); a, b = ev(), ev(); a.record(); g.replay(); b.record(); b.synchronize(); ts.append(a.elapsed_time(b))
    return statistics.median(ts[1:]) / NW * 1e3
from torch.profiler import profile, ProfilerActivity
for name, ns in SETS.items():
    m, k = SHAPES[name]
    W = [(torch.randn(m, k, device="cuda") * .02).half() for _ in range(NW)]
    for n in ns:
        x = torch.randn(n, k, device="cuda").half(); y = torch.zeros(n, m, device="cuda").half()
        f = (lambda i: torch.addmm(y, x, W[i].T, out=y)) if name in ("out", "down") else (lambda i: torch.mm(x, W[i].T, out=y))
        g = graph_of(f); s, b = sustained(g), burst(g)
        with profile(activities=[ProfilerActivity.CUDA]) as prof: f(0); torch.cuda.synchronize()
        names = [e.name for e in prof.events() if e.device_type.name == "CUDA"]
        print(f"{name} {n} sustained {s:.1f} burst {b:.1f} {' + '.join(names)[:90]}", flush=True)
