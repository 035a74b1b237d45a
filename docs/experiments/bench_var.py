"""Variants of the kernels in whole prefills: single with pauses and in a row, interleaved."""
import sys, time, statistics, torch, dataclasses
sys.path.insert(0, "exp"); import pm; pm.install()
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import hopper
from hybridgraph.forward.kernels.hopper import HopperKernels, tile_for
from hybridgraph.forward.kernels.product import Product, Tile, compile_together
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
class V(HopperKernels):
    most = 200; cluster = 2; split_most = 160; split_cluster = 2
    def _swiglu(self, n, w):
        if n > self.most: return None
        t = tile_for(n, 3)
        return Product("store_swiglu", dataclasses.replace(t, cluster=self.cluster if t.cluster > 1 else 1))
    def _split(self, n, w):
        old, hopper.MOST_TOKENS_SPLIT = hopper.MOST_TOKENS_SPLIT, self.split_most
        p = super()._split(n, w); hopper.MOST_TOKENS_SPLIT = old
        return p
def make(**kw):
    k = V(); [setattr(k, a, b) for a, b in kw.items()]; return k
ids = torch.randint(32000, (512,), device="cuda"); start = torch.zeros(1, dtype=torch.long, device="cuda"); last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")
def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)

import math
class Z(V):
    """own split products in token pieces"""
    pieces = 2; splits = 2; only = None; swi = None
    def _swiglu(self, n, w):
        if self.swi and n > 200: return Product("store_swiglu", Tile(3, math.ceil(n / self.swi / 8) * 8, 2))
        return super()._swiglu(n, w)
    def _split(self, n, w):
        if self.pieces == 0 or (self.only == "down" and w.shape[1] == w.shape[0]) or (self.only == "out" and w.shape[1] != w.shape[0]): return None
        return Product("store_partial", Tile(2, math.ceil(n / self.pieces / 8) * 8, self.split_cluster), self.splits)
def make(cls=V, **kw):
    k = cls(); [setattr(k, a, b) for a, b in kw.items()]; return k
PLAN = {200: dict(base={}, z2=dict(cls=Z), z2c4=dict(cls=Z, split_cluster=4)), 250: dict(base={}, z2=dict(cls=Z), z2c1=dict(cls=Z, split_cluster=1)), 300: dict(base={}, z2=dict(cls=Z), down=dict(cls=Z, only="down"), out=dict(cls=Z, only="out")),
  350: dict(base={}, z2=dict(cls=Z)), 400: dict(base={}, z2=dict(cls=Z), z2c1=dict(cls=Z, split_cluster=1), z2c4=dict(cls=Z, split_cluster=4), gu=dict(cls=Z, pieces=0, swi=2), both=dict(cls=Z, swi=2)),
  220: dict(base={}, own=dict(most=256)), 240: dict(base={}, own=dict(most=256))}
compile_together([Product("store_swiglu", Tile(3, t, c)) for t in (200, 224, 240) for c in (2,)] + [Product("store_partial", Tile(2, t, c)) for t in (104, 128, 152, 176, 200) for c in (1, 2, 4)], torch.float16)
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
                    t = one(g); time.sleep(0.02)
                    if i > 1: res[name][0].append(t)
            for name in variants:
                g = graphs[name][0]; time.sleep(0.1)
                res[name][1].append(statistics.mean([one(g) for _ in range(70)][20:]))
        for name in variants:
            d = ((refs[name] - refs["base"]).norm() / refs["base"].norm()).item()
            print(f"{n} {name:7s} single {statistics.median(res[name][0]):.3f}  row {statistics.mean(res[name][1]):.3f} ({' '.join('%.2f' % x for x in res[name][1])})  diff {d:.1e}", flush=True)
