import sys, time, statistics, torch, json, os
sys.path.insert(0, "exp"); import pm; pm.install()
from hybridgraph.forward.kernels.product import Product, Tile, compile_together
import hybridgraph.forward.kernels.hopper as H
NW = 6
SHAPES = {"gu": (22016, 4096), "qkv": (12288, 4096), "down": (4096, 11008), "out": (4096, 4096)}
lens = sorted(set(range(160, 513, 10)) | set(range(200, 513, 8)))
compile_together([Product("store_swiglu", Tile(3, t, 2)) for t in range(160, 257, 8)], torch.float16)
def graph_of(f):
    f(0); torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for i in range(NW): f(i)
    return g
def ev(): return torch.cuda.Event(enable_timing=True)
def burst(g):
    ts = []
    for _ in range(7):
        time.sleep(0.006); a, b = ev(), ev(); a.record(); g.replay(); b.record(); b.synchronize(); ts.append(a.elapsed_time(b))
    return statistics.median(ts[1:]) / NW * 1e3
res = {}
for name, (m, k) in SHAPES.items():
    W = [(torch.randn(m, k, device="cuda") * .02).half() for _ in range(NW)]
    for n in lens:
        x = torch.randn(n, k, device="cuda").half(); y = torch.zeros(n, m, device="cuda").half()
        f = (lambda i: torch.addmm(y, x, W[i].T, out=y)) if name in ("out", "down") else (lambda i: torch.mm(x, W[i].T, out=y))
        res[name, n] = burst(graph_of(f))
        if name == "gu" and n <= 256:
            o = torch.empty(n, m // 2, device="cuda", dtype=torch.float16); P = Product("store_swiglu", H.tile_for(n, 3))
            res["own", n] = burst(graph_of(lambda i: P(x, W[i], o, overlap=True)))
for n in lens: print(n, " ".join(f"{k} {res[k, n]:.1f}" for k in ("gu", "own", "qkv", "down", "out") if (k, n) in res), flush=True)
json.dump([[*k, v] for k, v in res.items()], open(os.environ["OUT"] + "/len.json", "w"))
