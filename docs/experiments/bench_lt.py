import sys, time, statistics, torch, pynvml, json, os
sys.path.insert(0, "exp")
from lt import *
pynvml.nvmlInit(); hd = pynvml.nvmlDeviceGetHandleByIndex(0)
clk = lambda: pynvml.nvmlDeviceGetClockInfo(hd, 1)
NW = 8
SHAPES = {"qkv": (12288, 4096), "out": (4096, 4096), "gu": (22016, 4096), "down": (4096, 11008)}
lens = [int(x) for x in sys.argv[1].split(",")]; shapes = sys.argv[2].split(","); count = int(sys.argv[3])
def graph_of(f):
    f(0); torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for i in range(NW): f(i)
    return g
def ev(): return torch.cuda.Event(enable_timing=True)
def sustained(g, warm=0.12, meas=0.2):
    g.replay(); torch.cuda.synchronize(); t = time.perf_counter(); g.replay(); g.replay(); torch.cuda.synchronize(); per = (time.perf_counter() - t) / 2
    for _ in range(max(2, int(warm / per))): g.replay()
    a, b = ev(), ev(); n = max(2, int(meas / per)); a.record()
    for _ in range(n): g.replay()
    b.record(); time.sleep(meas * .7); c = clk(); b.synchronize()
    return a.elapsed_time(b) / n / NW * 1e3, c
def burst(g):
    ts = []
    for _ in range(6):
        time.sleep(0.012); a, b = ev(), ev(); a.record(); g.replay(); b.record(); b.synchronize(); ts.append(a.elapsed_time(b))
    return statistics.median(ts[1:]) / NW * 1e3
out_json = []
t0 = time.time()
big = torch.randn(8192, 8192, device="cuda").half(); bigw = (torch.randn(8192, 8192, device="cuda") * .02).half(); o = torch.empty_like(big)
def mm(i): torch.mm(big, bigw.T, out=o)
g = graph_of(mm); us, c = sustained(g, .3, .4); print(f"8192^3 sustained {2*8192**3/us/1e6:.0f} TFLOP/s at {c} MHz, burst {2*8192**3/burst(g)/1e6:.0f}", flush=True)
del g
for name in shapes:
    m, k = SHAPES[name]
    W = [(torch.randn(m, k, device="cuda") * .02).half() for _ in range(NW)]
    for n in lens:
        x = torch.randn(n, k, device="cuda").half(); y = torch.zeros(n, m, device="cuda").half(); want = (x @ W[0].T).float()
        add = name in ("out", "down")
        cands = {}
        if add: cands["torch"] = lambda i: torch.addmm(y, x, W[i].T, out=y)
        else: cands["torch"] = lambda i: torch.mm(x, W[i].T, out=y)
        for sw in (False, True):
            try: mmx = Mm(m, n, k, beta=float(add), count=count if not sw else 3, swap=sw)
            except RuntimeError as e: print("swap" if sw else "", e); continue
            for j in range(mmx.got):
                cands[("swap " if sw else "") + f"#{j} " + mmx.describe(j)] = lambda i, mmx=mmx, j=j: mmx(x, W[i], y, j)
        rows = []
        for label, f in cands.items():
            y.zero_(); 
            try:
                f(0); torch.cuda.synchronize(); err = ((y.float() - want).norm() / want.norm()).item()
                y.zero_(); g = graph_of(f); b = burst(g); s, c = sustained(g); del g
            except RuntimeError as e:
                print(name, n, label, e); continue
            rows.append((s, b, c, label, err))
        base = rows[0]
        rows.sort()
        print(f"{name} {n} torch: sustained {base[0]:.1f} burst {base[1]:.1f} at {base[2]} | {2*m*n*k/base[0]/1e6:.0f} TF", flush=True)
        for r in rows[:6]: print(f"    {r[0]:.1f} {r[0]/base[0]-1:+.1%}  burst {r[1]:.1f} {r[1]/base[1]-1:+.1%} {r[2]} MHz {r[3]} err {r[4]:.1e}", flush=True)
        out_json.append((name, n, rows))
print(f"took {time.time()-t0:.0f} s")
json.dump(out_json, open(os.environ["OUT"] + "/lt.json", "w"))
