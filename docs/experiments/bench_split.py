"""Variants of the kernels in whole prefills: single with pauses and in a row, interleaved."""
import sys, time, statistics, torch, dataclasses
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import hopper
from hybridgraph.forward.kernels.hopper import HopperKernels, tile_for
from hybridgraph.forward.kernels.product import Product, Tile, compile_together
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
class V(HopperKernels):
    split_most = 160; only = None; swiglu_most = 240
    def _split(self, n, w):
        square = w.shape[0] == w.shape[1]
        if self.only == "down" and square or self.only == "out" and not square: return None
        old, hopper.MOST_TOKENS_SPLIT = hopper.MOST_TOKENS_SPLIT, self.split_most
        p = super()._split(n, w); hopper.MOST_TOKENS_SPLIT = old
        return p
    def _swiglu(self, n, w):
        return super()._swiglu(n, w) if n <= self.swiglu_most else None
def make(**kw):
    k = V(); [setattr(k, a, b) for a, b in kw.items()]; return k
ids = torch.randint(32000, (512,), device="cuda"); start = torch.zeros(1, dtype=torch.long, device="cuda"); last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")
def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)

ALL = dict(base={}, none=dict(split_most=0), down=dict(split_most=256, only="down"), out=dict(split_most=256, only="out"), both=dict(split_most=256), noswi=dict(swiglu_most=0))
PLAN = {n: ALL for n in (50, 100, 150, 200)}
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
