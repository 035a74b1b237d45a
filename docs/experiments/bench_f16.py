import sys, time, statistics, torch, pynvml
sys.path.insert(0, "docs/experiments")
import f16
from hybridgraph.forward.kernels import product
from hybridgraph.forward.kernels.product import Product, Tile
pynvml.nvmlInit(); hd = pynvml.nvmlDeviceGetHandleByIndex(0)
clk = lambda: pynvml.nvmlDeviceGetClockInfo(hd, 1)
uj = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(hd)
NW = 6
def ev(): return torch.cuda.Event(enable_timing=True)
def graph_of(f, n=NW):
    f(0); torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for i in range(n): f(i)
    return g
def measure(label, g, n=NW, secs=0.6, flops=0):
    ts = []
    for _ in range(6):
        time.sleep(0.006); a, b = ev(), ev(); a.record(); g.replay(); b.record(); b.synchronize(); ts.append(a.elapsed_time(b))
    burst = statistics.median(ts[1:]) / n * 1e3
    per = burst * n / 1e6
    for _ in range(int(0.3 / per)): g.replay()
    a, b = ev(), ev(); k = int(secs / per); a.record()
    for _ in range(k): g.replay()
    b.record(); pts = []; cs = []
    time.sleep(0.2)
    while not b.query():
        e = uj()
        if not pts or pts[-1][1] != e: pts.append((time.perf_counter(), e))
        cs.append(clk()); time.sleep(0.002)
    us = a.elapsed_time(b) / k / n * 1e3
    pts = pts[1:]
    p = (pts[-1][1] - pts[0][1]) / 1e3 / (pts[-1][0] - pts[0][0]) if len(pts) > 1 else float("nan")
    rate = f"{flops / us / 1e6:.0f} TFLOP/s" if flops else ""
    print(f"{label:40s} burst {burst:7.1f} sustained {us:7.1f} us  {p:5.0f} W {statistics.mean(cs[len(cs)//2:] or [0]):.0f} MHz {rate}", flush=True)
def fp16acc(on): torch.backends.cuda.matmul.allow_fp16_accumulation = on
A = torch.randn(8192, 8192, device="cuda").half(); B = (torch.randn(8192, 8192, device="cuda") * .02).half(); o = torch.empty_like(A)
for rep in range(2):
    for on in (False, True):
        fp16acc(on); measure(f"8192^3 f16acc={on}", graph_of(lambda i: torch.mm(A, B.T, out=o), 1), 1, flops=2 * 8192**3)
ref = A[:64].double() @ B.T.double()
for on in (False, True):
    fp16acc(on); e = (torch.mm(A, B.T)[:64].double() - ref).norm() / ref.norm(); print("error", on, float(e))
fp16acc(False)
del A, B, o
SHAPES = {"gu": (22016, 4096), "qkv": (12288, 4096), "down": (4096, 11008), "out": (4096, 4096)}
for name, (m, k) in SHAPES.items():
    W = [(torch.randn(m, k, device="cuda") * .02).half() for _ in range(NW)]
    for n in ((150, 300, 400) if name != "gu" else (300, 400)):
        x = torch.randn(n, k, device="cuda").half(); y = torch.zeros(n, m, device="cuda").half()
        for on in (False, True):
            fp16acc(on); measure(f"{name} {n} cuBLAS f16acc={on}", graph_of(lambda i: torch.mm(x, W[i].T, out=y)), flops=2 * n * m * k)
    fp16acc(False)
    if name != "gu": continue
    for n in (104, 152, 200):
        x = torch.randn(n, k, device="cuda").half(); y = torch.zeros(n, m // 2, device="cuda").half()
        h = x.double() @ W[0].T.double(); g, u = h.chunk(2, 1); ref = torch.nn.functional.silu(g) * u
        for p in (None, 0, 1, 2, 4):
            f16.use(p)
            try:
                P = Product("store_swiglu", Tile(3, n, 2))
                P(x, W[0], y, overlap=True); torch.cuda.synchronize()
                err = float((y.double() - ref).norm() / ref.norm())
                measure(f"own gu {n} promote={p} err {err:.2e}", graph_of(lambda i: P(x, W[i], y, overlap=True)))
            except RuntimeError as e: print(n, p, e)
