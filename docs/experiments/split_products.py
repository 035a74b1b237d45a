"""Split products with half-precision partial sums: up to which length, by which tiles, for which weights; and attention's blocks."""

import statistics, sys, time
import torch, triton, triton.language as tl
from hybridgraph.model import load_model
from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import hopper, product, triton as tk
from hybridgraph.forward.kernels.hopper import HopperKernels, TritonKernels, tile_for
from hybridgraph.forward.kernels.product import Product, Tile
from hybridgraph.forward.kernels.rowwise import rotated_halves, wait_for_inputs


@triton.jit(do_not_specialize_on_alignment=["start"])
def rotate2(
    qkv,
    start,
    keys,
    values,
    cos,
    sin,
    head_stride,
    eps,
    other,
    NUM_QUERIES: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0)
    first_head = tl.program_id(1) * BLOCK_HEADS
    pair = tl.arange(0, HALF)
    heads = tl.arange(0, BLOCK_HEADS)
    position = row + tl.load(start)
    c = tl.load(cos + position * HALF + pair)[None, :]
    s = tl.load(sin + position * HALF + pair)[None, :]
    wait_for_inputs(PDL)
    source = qkv + row.to(tl.int64) * ((NUM_QUERIES + 2 * NUM_KEYS) * 2 * HALF)
    at = (first_head + heads)[:, None] * (2 * HALF) + pair[None, :]
    first = tl.load(source + at).to(tl.float32) + tl.load(source + other + at).to(tl.float32)
    second = tl.load(source + at + HALF).to(tl.float32) + tl.load(source + other + at + HALF).to(tl.float32)
    slot = position * 2 * HALF + pair[None, :]
    if first_head < NUM_QUERIES:
        x, y = rotated_halves(first, second, c, s, cos, pair, pair, eps, HALF, False)
        target = source + at
    elif first_head < NUM_QUERIES + NUM_KEYS:
        x, y = rotated_halves(first, second, c, s, cos, pair, pair, eps, HALF, False)
        target = keys + (first_head - NUM_QUERIES + heads)[:, None] * head_stride + slot
    else:
        x, y = first, second
        target = values + (first_head - NUM_QUERIES - NUM_KEYS + heads)[:, None] * head_stride + slot
    tl.store(target, x.to(qkv.dtype.element_ty))
    tl.store(target + HALF, y.to(qkv.dtype.element_ty))


class Tile24(Tile):
    @property
    def stages(self):
        return min(24, product.RING_BYTES // self.stage_bytes)


class V(HopperKernels):
    stages = 12
    down = 512
    out = 200
    wg = 2
    qkv = 0
    attn = None

    def _split(self, n, w):
        width, inner = w.shape
        if n > (self.down if inner > width else self.out):
            return None
        return Product(
            "store_partial",
            (Tile24 if self.stages == 24 else Tile)(self.wg, tile_for(n, 2).tokens, 2 if n >= 32 else 1),
            2 * self.wg,
        )

    def linear(self, rows, weight, bias):
        n = rows.shape[0]
        if n > self.qkv or weight.shape[0] != 12288:
            return super().linear(rows, weight, bias)
        self.partial = rows.new_empty(2, n, 12288)
        Product("store_partial", Tile(3, tile_for(n, 2).tokens, 2 if n >= 32 else 1), 2)(
            rows, weight, self.partial, overlap=True
        )
        return self.partial[0]

    def rotate_store(self, qkv, num_queries, start, heads, norms, slots):
        if qkv.shape[0] > self.qkv or qkv.shape[1] != 12288:
            return super().rotate_store(qkv, num_queries, start, heads, norms, slots)
        self._launch(
            rotate2,
            (qkv.shape[0], 96 // 8),
            (qkv, start, slots.keys, slots.values, slots.cos, slots.sin, slots.keys.stride(0), heads.eps, qkv.numel()),
            NUM_QUERIES=32,
            NUM_KEYS=32,
            HALF=64,
            BLOCK_HEADS=8,
            num_warps=4,
        )

    def attend(self, *a):
        before = tk.attend_blocks
        if self.attn:
            tk.attend_blocks = lambda n: self.attn
        try:
            return super().attend(*a)
        finally:
            tk.attend_blocks = before


def make(**kw):
    k = V()
    [setattr(k, a, b) for a, b in kw.items()]
    return k


loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=0)
ids = torch.randint(32000, (512,), device="cuda")
start = torch.zeros(1, dtype=torch.long, device="cuda")
last = torch.zeros(1, dtype=torch.long, device="cuda")
logits = torch.empty(32000, dtype=torch.float16, device="cuda")


def one(g):
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    g.replay()
    b.record()
    b.synchronize()
    return a.elapsed_time(b)


OLD = dict(down=0, out=0)
SHORT = {"base": {}, "w1": dict(wg=1), "w1s24": dict(wg=1, stages=24), "qkv": dict(qkv=512)}
ATTN = {
    f"a{'-'.join(map(str, a))}": dict(attn=a)
    for a in ((64, 128, 4, 2), (64, 128, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 32, 4, 4))
}
LONG = {"cublas": OLD, "down": {}, "out": dict(down=0, out=512), "both": dict(out=512)}
PLAN = {
    400: LONG | ATTN,
    300: LONG | ATTN,
    350: LONG,
    10: SHORT,
    50: SHORT,
    100: SHORT,
    150: SHORT,
    200: {"cublas": OLD, "base": {}, "qkv": dict(qkv=512)} | ATTN,
    250: {"cublas": OLD, "base": {}, "qkv": dict(qkv=512)},
}
forward = FusedForward(loaded.module, make())
cache = forward.allocate_cache(512)
t0 = time.time()
product.compile_together(
    {
        Product("store_partial", Tile(w, tile_for(n, 2).tokens, 2 if n >= 32 else 1), 4)
        for n in map(int, sys.argv[1:])
        for w in ((2,) if n > 250 else (1, 2, 3))
    },
    torch.float16,
)
print("compiled", time.time() - t0, flush=True)
PLAN = {n: PLAN[n] for n in map(int, sys.argv[1:])}
with torch.inference_mode():
    for n, variants in PLAN.items():
        last.fill_(n - 1)
        graphs = {}
        refs = {}
        for name, kw in variants.items():
            forward._kernels = make(**kw)
            forward.prefill(ids, n, start, last, cache, logits)
            torch.cuda.synchronize()
            refs[name] = logits.float().clone()
            g = torch.cuda.CUDAGraph()
            with torch.cuda.graph(g):
                forward.prefill(ids, n, start, last, cache, logits)
            graphs[name] = g
        res = {name: ([], []) for name in variants}
        for rnd in range(3):
            for name in variants:
                g = graphs[name]
                for i in range(7):
                    t = one(g)
                    time.sleep(0.005)
                    if i > 1:
                        res[name][0].append(t)
            if rnd == 2:
                continue
            for name in variants:
                g = graphs[name]
                time.sleep(0.05)
                res[name][1].append(statistics.mean([one(g) for _ in range(40)][15:]))
        one_name = next(iter(variants))
        for name in variants:
            d = ((refs[name] - refs[one_name]).norm() / refs[one_name].norm()).item()
            print(
                f"{n} {name:12s} single {statistics.median(res[name][0]):.3f}  row {statistics.mean(res[name][1]):.3f} ({' '.join('%.2f' % x for x in res[name][1])})  diff {d:.1e}",
                flush=True,
            )
