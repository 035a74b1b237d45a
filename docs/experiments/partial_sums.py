"""Partial sums of split products: float32 scalars, float32 pairs, half-precision pairs; and up to which length."""
import importlib.util, statistics, sys, time
import torch
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import hopper, product
from hybridgraph.forward.kernels.hopper import HopperKernels, tile_for

def module(name):
    spec = importlib.util.spec_from_file_location(name + "_product", f".exp/{name}/product.py")
    m = importlib.util.module_from_spec(spec); sys.modules[spec.name] = m; spec.loader.exec_module(m)
    return m
PRODUCTS = {"old": (module("old"), torch.float32), "f32": (module("f32"), torch.float32), "f16": (product, None)}

class V(HopperKernels):
    kind = "f16"; down = 160; out = 128
    def _split(self, n, w):
        m, _ = PRODUCTS[self.kind]
        width, inner = w.shape
        if n > (self.down if inner > width else self.out): return None
        return m.Product("store_partial", m.Tile(2, tile_for(n, 2).tokens, 2 if n >= 32 else 1), 4)
    def linear_add_norm(self, hidden, rows, weight, norm, eps):
        p = self._split(rows.shape[0], weight)
        if p is None: return hopper.TritonKernels.linear_add_norm(self, hidden, rows, weight, norm, eps)
        partial = torch.empty(p.splits, *hidden.shape, dtype=PRODUCTS[self.kind][1] or hidden.dtype, device="cuda")
        p(rows, weight, partial, overlap=self._overlap)
        return self.add_norm(hidden, partial, norm, eps)

def make(**kw):
    k = V(); [setattr(k, a, b) for a, b in kw.items()]; return k
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
ids = torch.randint(32000, (512,), device="cuda"); start = torch.zeros(1, dtype=torch.long, device="cuda"); last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")
def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)
SHORT = {"old": dict(kind="old"), "f32": dict(kind="f32"), "f16": dict()}
MORE = {"f16 down": dict(down=512, out=0), "f16 out": dict(down=0, out=512), "f16 both": dict(down=512, out=512)}
PLAN = {10: SHORT, 50: SHORT, 100: SHORT, 130: SHORT | MORE, 150: SHORT | MORE} | {n: {"old": dict(kind="old")} | MORE for n in (200, 240, 250, 300, 350, 400)}
with torch.inference_mode():
    for n, variants in PLAN.items():
        last.fill_(n - 1); graphs = {}; refs = {}
        for name, kw in variants.items():
            f = FusedForward(loaded.module, make(**kw)); cache = f.allocate_cache(512)
            f.prefill(ids, n, start, last, cache, logits); torch.cuda.synchronize()
            refs[name] = logits.float().clone()
            g = torch.cuda.CUDAGraph()
            with torch.cuda.graph(g): f.prefill(ids, n, start, last, cache, logits)
            graphs[name] = (g, f, cache)
        res = {name: ([], []) for name in variants}
        for rnd in range(3):
            for name in variants:
                g = graphs[name][0]
                for i in range(7):
                    t = one(g); time.sleep(0.005)
                    if i > 1: res[name][0].append(t)
            for name in variants:
                g = graphs[name][0]; time.sleep(0.05)
                res[name][1].append(statistics.mean([one(g) for _ in range(60)][20:]))
        for name in variants:
            d = ((refs[name] - refs["old"]).norm() / refs["old"].norm()).item()
            print(f"{n} {name:9s} single {statistics.median(res[name][0]):.3f}  row {statistics.mean(res[name][1]):.3f} ({' '.join('%.2f' % x for x in res[name][1])})  diff {d:.1e}", flush=True)
