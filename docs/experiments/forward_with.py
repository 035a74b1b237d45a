"""Whole prefills with the experimental products of exp_product.py in the places that the flags name. On 9a9e49a.

python forward_with.py stamps 10,100,150,200,400      # exp.cu = product_stamped.cu
python forward_with.py window 10,50,100,150,200       # exp.cu = product_windowed.cu
"""
import dataclasses, sys, time, math, statistics, torch
from concurrent.futures import ThreadPoolExecutor
from exp_product import *
from hybridgraph.forward.kernels.hopper import HopperKernels
from hybridgraph.forward.kernels.triton import TritonKernels
from hybridgraph.forward.fused import FusedForward
from hybridgraph.model import load_model
f16 = torch.float16
def r8(n): return math.ceil(n / 8) * 8
class Exp(HopperKernels):
    defs = (); trace = None; names = []; limit = 12
    qkv_own = gu_own = add_own = True
    def go(self, kind, rows, weight, pairs, ep, tile):
        tile = dataclasses.replace(tile, limit=self.limit)
        nxt = None
        if self.trace is not None:
            nxt = self.trace[len(self.names)]; self.names.append(kind)
        xl(rows, weight, pairs, ep, tile, nxt)
    def linear_rotate(self, rows, weight, bias, num_queries, start, heads, norms, slots):
        n = rows.shape[0]
        if not self.qkv_own or n > 400 or num_queries == 0: return TritonKernels.linear_rotate(self, rows, weight, bias, num_queries, start, heads, norms, slots)
        tile = X(3, r8(n), 1, 2, self.defs) if n <= 200 else X(3, r8(math.ceil(n / 2)), 2, 1, self.defs)
        q = rows.new_empty(n, num_queries * heads.dim)
        e = Rotate(*(t.data_ptr() for t in (q, slots.keys, slots.values, slots.cos, slots.sin)), 0, start.data_ptr(), slots.keys.stride(0), num_queries, heads.keys, heads.dim)
        self.go("qkv", rows, weight, Pairs(heads.dim // 2, heads.dim), e, tile)
        return q
    def linear_swiglu(self, rows, gate_up):
        n = rows.shape[0]
        if not self.gu_own or n > 200: return TritonKernels.linear_swiglu(self, rows, gate_up)
        w = gate_up.shape[0] // 2
        out = rows.new_empty(n, w)
        self.go("gu", rows, gate_up, Pairs(w, 2 * w), Swiglu(out.data_ptr(), w), X(3, r8(n), 2 if n > 16 else 1, 1, self.defs))
        return out
    def linear_add_norm(self, hidden, rows, weight, norm, eps):
        n, width = hidden.shape
        if not self.add_own or n > 400: return TritonKernels.linear_add_norm(self, hidden, rows, weight, norm, eps)
        kind = "out" if weight.shape[1] == width else "down"
        if n <= 200:
            p = torch.empty(4, n, width, dtype=torch.float32, device=rows.device)
            self.go(kind, rows, weight, Pairs(8, width), Partial(p.data_ptr(), width, n), X(2, r8(n), 2 if n > 16 else 1, 1, self.defs, 4))
            return self.add_norm(hidden, p, norm, eps)  # as in ea12e93: 9a9e49a has no such kernel
        self.go(kind, rows, weight, Pairs(8, width), Add(hidden.data_ptr(), width), X(2, r8(math.ceil(n / 2)), 1, 2, self.defs))
        return self.norm(hidden, norm, eps)
def xl(rows, weight, pairs, ep, tile, nxt):
    if nxt is None: return xlaunch(rows, weight, pairs, ep, tile)
    class N:  # a pointer in tensor's clothes
        shape = (0, 0)
        def data_ptr(self): return nxt.data_ptr()
    xlaunch(rows, weight, pairs, ep, tile, N())
lengths = [int(x) for x in sys.argv[2].split(",")]
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
ids = torch.randint(32000, (512,), device="cuda"); start = torch.zeros(1, dtype=torch.long, device="cuda"); last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=f16, device="cuda")
def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)
def graph_of(fwd, cache, n):
    last.fill_(n - 1)
    fwd.prefill(ids, n, start, last, cache, logits)
    torch.cuda.synchronize()
    if fwd._kernels.trace is not None: fwd._kernels.names.clear()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g): fwd.prefill(ids, n, start, last, cache, logits)
    return g
def single(g, num=11, pause=0.012):
    ts = []
    for i in range(num): ts.append(one(g)); time.sleep(pause)
    return statistics.median(ts[2:])
def row(g):
    time.sleep(0.3); ts = [one(g) for _ in range(105)]
    return statistics.mean(ts)
def with_stamps():
    for n in lengths:
        line = []
        for name, q, s, a in (("none", 0, 0, 0), ("gu", 0, 1, 0), ("gu+add", 0, 1, 1), ("gu+qkv", 1, 1, 0), ("all", 1, 1, 1)):
            k = Exp(); k.qkv_own, k.gu_own, k.add_own = bool(q), bool(s), bool(a)
            fwd = FusedForward(loaded.module, k); cache = fwd.allocate_cache(512)
            line.append(f"{name} {single(graph_of(fwd, cache, n), 12, 0.02):.3f}")
        print(n, " | ".join(line), flush=True)
        k = Exp(); k.defs = ("TRACE",); k.trace = torch.zeros(260, 140, 8, dtype=torch.int64, device="cuda"); k.names = []
        fwd = FusedForward(loaded.module, k); cache = fwd.allocate_cache(512)
        g = graph_of(fwd, cache, n)
        for _ in range(3): one(g); time.sleep(0.02)
        tr = k.trace.cpu(); names = k.names
        per = {}
        by_sm = {}
        for i, name in enumerate(names):
            blocks = [r for r in tr[i].tolist() if r[0]]
            for r in blocks: by_sm.setdefault(r[7], []).append((r[0], i, r))
        for sm, rs in by_sm.items():
            rs.sort()
            for (a, b) in zip(rs, rs[1:]):
                if b[1] == a[1] + 1 and 20 < b[1] < 100:
                    r, prev = b[2], a[2]
                    per.setdefault(names[b[1]], []).append([r[0] - max(prev[5], prev[0]), r[1] - r[0], r[2] - r[1], r[3] - r[2], r[4] - r[3], r[5] - r[4]])
        for name, rows in per.items():
            cols = list(zip(*rows))
            print(f"   {n} {name:5s} blocks {len(rows)//20}: " + " ".join(f"{lab} {statistics.mean(c)/1980:.2f}" for lab, c in zip(("gap", "init", "wait", "first", "main", "finish"), cols)) + f" | sum {sum(statistics.mean(c) for c in cols)/1980:.2f}", flush=True)
def with_windows():
    V = {"base": ((), 12), "w2": (("WINDOW 2",), 12), "w3": (("WINDOW 3",), 12), "w4": (("WINDOW 4",), 12), "l4": ((), 4), "l6": ((), 6)}
    jobs = []
    for n in lengths:
        for defs, limit in V.values():
            for ep, t in (("Rotate", X(3, r8(n), 1, 2, defs)), ("Swiglu", X(3, r8(n), 2 if n > 16 else 1, 1, defs)), ("Partial", X(2, r8(n), 2 if n > 16 else 1, 1, defs, 4))):
                jobs.append((ep, dataclasses.replace(t, limit=limit)))
    t0 = time.time()
    with ThreadPoolExecutor(16) as ex: list(ex.map(lambda j: product._cached(j[0], j[1], f16), jobs))
    print(f"compiled {len(jobs)} in {time.time() - t0:.1f}", flush=True)
    for n in lengths:
        for config, q, s, a in (("all", 1, 1, 1), ("gu+add", 0, 1, 1)) if n <= 100 else (("gu+add", 0, 1, 1),):
            line = []
            for name, (defs, limit) in V.items():
                k = Exp(); k.qkv_own, k.gu_own, k.add_own = bool(q), bool(s), bool(a); k.defs = defs; k.limit = limit
                fwd = FusedForward(loaded.module, k); cache = fwd.allocate_cache(512)
                g = graph_of(fwd, cache, n)
                line.append(f"{name} {single(g):.3f}" + (f"/{row(g):.3f}" if name in ("base", "w3", "l4") else ""))
            print(n, config, " | ".join(line), flush=True)
with torch.inference_mode():
    {"stamps": with_stamps, "window": with_windows}[sys.argv[1]]()
