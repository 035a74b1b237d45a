"""Variants of the kernels around own products, by patching: norm's warps, attention's blocks, a smaller ring. On a3a4ae7."""
import sys, time, statistics, dataclasses, torch
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import product as P, hopper as H, triton as T
lengths = [int(x) for x in sys.argv[1].split(",")]
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
ids = torch.randint(32000, (512,), device="cuda"); start = torch.zeros(1, dtype=torch.long, device="cuda"); last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")
def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record(); g.replay(); b.record(); b.synchronize(); return a.elapsed_time(b)
real_rw, real_ab, real_tile, real_lan = T._row_warps, T.attend_blocks, H.tile_for, H.HopperKernels.linear_add_norm
def warps4(width): return 4
def blocks32(n): return (32, 64, 4, 2) if 16 < n <= 300 else real_ab(n)
def blocks64_32(n): return (64, 32, 4, 2) if 16 < n <= 300 else real_ab(n)
def capped(cap):
    def f(self, hidden, rows, weight, norm, eps):
        if weight.shape[1] == hidden.shape[1]:
            H.tile_for = lambda n, w: dataclasses.replace(real_tile(n, w), ring_bytes=cap)
        try: return real_lan(self, hidden, rows, weight, norm, eps)
        finally: H.tile_for = real_tile
    return f
V = {
    "F": {}, "norm4": {"rw": warps4}, "att32": {"ab": blocks32}, "att64x32": {"ab": blocks64_32},
    "cap142+n4": {"rw": warps4, "cap": 142 * 1024}, "cap140+n4+a32": {"rw": warps4, "ab": blocks32, "cap": 178 * 1024},
    "cap100+n4+a64x32": {"rw": warps4, "ab": blocks64_32, "cap": 174 * 1024},
}
with torch.inference_mode():
    for n in lengths:
        line = []
        for name, v in V.items():
            T._row_warps, T.attend_blocks = v.get("rw", real_rw), v.get("ab", real_ab)
            H.HopperKernels.linear_add_norm = capped(v["cap"]) if "cap" in v else real_lan
            fwd = FusedForward(loaded.module); cache = fwd.allocate_cache(512); last.fill_(n - 1)
            fwd.prefill(ids, n, start, last, cache, logits); torch.cuda.synchronize()
            g = torch.cuda.CUDAGraph()
            with torch.cuda.graph(g): fwd.prefill(ids, n, start, last, cache, logits)
            ts = []
            for i in range(13): ts.append(one(g)); time.sleep(0.012)
            line.append(f"{name} {statistics.median(ts[2:]):.3f}")
        print(n, " | ".join(line), flush=True)
