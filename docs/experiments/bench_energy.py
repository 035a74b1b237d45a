import sys, time, statistics, torch, pynvml
from pathlib import Path
from hybridgraph.forward.kernels import product
from hybridgraph.forward.kernels.product import Product, Tile
pynvml.nvmlInit(); hd = pynvml.nvmlDeviceGetHandleByIndex(0)
clk = lambda: pynvml.nvmlDeviceGetClockInfo(hd, 1)
uj = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(hd)
product.SOURCE = Path("exp/product_x.cu").resolve()
orig = product._prelude; DEFS = ""
product._prelude = lambda *a: DEFS + orig(*a)
NW = 8
def graph_of(f):
    f(0); torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for i in range(NW): f(i)
    return g
def ev(): return torch.cuda.Event(enable_timing=True)
def measure(label, g, secs=0.9):
    for _ in range(20): g.replay()
    torch.cuda.synchronize(); t = time.perf_counter()
    for _ in range(20): g.replay()
    torch.cuda.synchronize(); per = (time.perf_counter() - t) / 20
    for _ in range(int(0.25 / per)): g.replay()
    a, b = ev(), ev(); n = int(secs / per); a.record()
    for _ in range(n): g.replay()
    b.record(); pts = []; cs = []
    time.sleep(0.2)
    while not b.query():
        e = uj()
        if not pts or pts[-1][1] != e: pts.append((time.perf_counter(), e))
        cs.append(clk()); time.sleep(0.002)
    us = a.elapsed_time(b) / n / NW * 1e3
    pts = pts[1:]
    p = (pts[-1][1] - pts[0][1]) / 1e3 / (pts[-1][0] - pts[0][0]) if len(pts) > 1 else float("nan")
    print(f"{label:40s} {us:7.1f} us  {p:5.0f} W  {p*us/1e3:7.2f} mJ  {statistics.mean(cs[len(cs)//2:] or [0]):.0f} MHz", flush=True)
    return us, p
m, k = 22016, 4096
W = [(torch.randn(m, k, device="cuda") * .02).half() for _ in range(NW)]
Z = [torch.zeros_like(W[0]) for _ in range(NW)]
big = torch.randn(8192, 8192, device="cuda").half(); bigw = (torch.randn(8192, 8192, device="cuda") * .02).half(); o = torch.empty_like(big)
measure("8192^3 mm", graph_of(lambda i: torch.mm(big, bigw.T, out=o)))
buf = torch.empty(NW, dtype=torch.float32, device="cuda")
measure("copy 180 MB (read and write)", graph_of(lambda i: Z[i].copy_(W[i])))
for z in Z: z.zero_()
measure("amax read 180 MB", graph_of(lambda i: torch.amax(W[i].view(torch.int16))))
def own(label, n, tile, defs, weights=W, rows=None):
    global DEFS; DEFS = defs; product._kernel.cache_clear(); product._weight_map.cache_clear()
    x = torch.randn(n, k, device="cuda").half() if rows is None else rows
    y = torch.empty(n, m // 2, device="cuda", dtype=torch.float16)
    P = Product("store_swiglu", tile)
    return measure(label, graph_of(lambda i: P(x, weights[i], y, overlap=True)))
for n in (10, 100, 200):
    T = Tile(3, (n + 7) // 8 * 8, 2)
    own(f"{n} whole", n, T, "")
    own(f"{n} whole, zero weights", n, T, "", Z)
    own(f"{n} loads only", n, T, "#define MATH 0\n")
    own(f"{n} units only", n, T, "#define MATH 0\n#define LOADS 1\n")
    own(f"{n} math only", n, T, "#define LOADS 0\n")
    if n > 10: own(f"{n} tokens only", n, T, "#define MATH 0\n#define LOADS 2\n")
for n in (100, 152, 200):
    for c in (1, 2, 4): own(f"{n} cluster {c}", n, Tile(3, n // 8 * 8, c), "")
for n in (200, 400):
    x = torch.randn(n, k, device="cuda").half(); y = torch.empty(n, m, device="cuda", dtype=torch.float16)
    measure(f"{n} cuBLAS", graph_of(lambda i: torch.mm(x, W[i].T, out=y)))
    measure(f"{n} cuBLAS, zero weights", graph_of(lambda i: torch.mm(x, Z[i].T, out=y)))
    measure(f"{n} cuBLAS, zero tokens", graph_of(lambda i: torch.mm(x * 0, W[i].T, out=y)))
    measure(f"{n} cuBLAS, one weight", graph_of(lambda i: torch.mm(x, W[0].T, out=y)))
