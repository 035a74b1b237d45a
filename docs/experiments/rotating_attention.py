"""Attention that rotates queries and keys itself, and stores them, against a kernel in front of it: us a layer.

    python docs/experiments/rotating_attention.py    # the first column is the pair of kernels that was there before
"""

import time
from statistics import median

import torch
import triton
import triton.language as tl

from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels.rowwise import wait_for_inputs
from hybridgraph.forward.kernels.triton import LOG2_E, _norms
from hybridgraph.model import load_model


@triton.jit
def rotated_halves(
    source,
    at,
    weight,
    cos,
    sin,
    positions,
    valid,
    eps,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    pair = tl.arange(0, BLOCK_HALF)
    pairs = pair < HALF
    mask = valid[:, None] & pairs[None, :]
    x = tl.load(source + at[:, None] + pair[None, :], mask, other=0.0).to(tl.float32)
    y = tl.load(source + at[:, None] + HALF + pair[None, :], mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        rstd = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / (2 * HALF) + eps)[:, None]
        x = x * rstd * tl.load(weight + pair, pairs, other=0.0).to(tl.float32)[None, :]
        y = y * rstd * tl.load(weight + HALF + pair, pairs, other=0.0).to(tl.float32)[None, :]
    angle = positions[:, None] * HALF + pair[None, :]
    c = tl.load(cos + angle, mask, other=0.0)
    s = tl.load(sin + angle, mask, other=0.0)
    dtype = source.dtype.element_ty
    return (x * c - y * s).to(dtype), (y * c + x * s).to(dtype)


@triton.jit
def mix(q1, q2, k1, k2, v, visible, scores_max, total, mixed, scale, MASKED: tl.constexpr):
    scores = tl.dot(q1, k1.T)
    scores = tl.dot(q2, k2.T, scores) * scale
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_max = tl.maximum(scores_max, tl.max(scores, 1))
    p = tl.exp2(scores - new_max[:, None])
    shrink = tl.exp2(scores_max - new_max)
    total = total * shrink + tl.sum(p, 1)
    mixed = tl.dot(p.to(v.dtype), v, mixed * shrink[:, None])
    return new_max, total, mixed


@triton.jit(do_not_specialize=["length"], do_not_specialize_on_alignment=["start"])
def rotating_attend_kernel(
    qkv,
    start,
    keys,
    values,
    cos,
    sin,
    query_norm,
    key_norm,
    out,
    length,
    head_stride,
    eps,
    scale,
    NUM_QUERIES: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    DIM: tl.constexpr = 2 * HALF
    BLOCK_DIM: tl.constexpr = 2 * BLOCK_HALF
    GROUP: tl.constexpr = NUM_QUERIES // NUM_KEYS
    STRIDE: tl.constexpr = (NUM_QUERIES + 2 * NUM_KEYS) * DIM
    head = tl.program_id(0)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    before = tl.load(start).to(tl.int32)
    dims = tl.arange(0, BLOCK_DIM)
    pair = tl.arange(0, BLOCK_HALF)
    pairs = (pair < HALF)[None, :]
    inside = (dims < DIM)[None, :]
    kv_head = head // GROUP
    keys += kv_head.to(tl.int64) * head_stride
    values += kv_head.to(tl.int64) * head_stride
    new_keys = qkv + (NUM_QUERIES + kv_head) * DIM
    new_values = new_keys + NUM_KEYS * DIM
    wait_for_inputs(PDL)
    q1, q2 = rotated_halves(
        qkv + head * DIM,
        rows * STRIDE,
        query_norm,
        cos,
        sin,
        before + rows,
        rows < length,
        eps,
        HALF,
        BLOCK_HALF,
        HAS_NORM,
    )
    scores_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
    for col in range(0, before, BLOCK_N):
        cols = col + tl.arange(0, BLOCK_N)
        valid = cols < before
        half_mask = valid[:, None] & pairs
        k1 = tl.load(keys + cols[:, None] * DIM + pair[None, :], half_mask, other=0.0)
        k2 = tl.load(keys + cols[:, None] * DIM + HALF + pair[None, :], half_mask, other=0.0)
        v = tl.load(values + cols[:, None] * DIM + dims[None, :], valid[:, None] & inside, other=0.0)
        scores_max, total, mixed = mix(q1, q2, k1, k2, v, valid[None, :], scores_max, total, mixed, scale, True)
    for col in range(0, first, BLOCK_N):
        cols = col + tl.arange(0, BLOCK_N)
        k1, k2 = rotated_halves(
            new_keys, cols * STRIDE, key_norm, cos, sin, before + cols, cols >= 0, eps, HALF, BLOCK_HALF, HAS_NORM
        )
        v = tl.load(new_values + cols[:, None] * STRIDE + dims[None, :], inside, other=0.0)
        scores_max, total, mixed = mix(q1, q2, k1, k2, v, (cols >= 0)[None, :], scores_max, total, mixed, scale, False)
    leads = head % GROUP == 0
    for col in range(first, tl.minimum(first + BLOCK_M, length), BLOCK_N):
        cols = col + tl.arange(0, BLOCK_N)
        valid = cols < length
        k1, k2 = rotated_halves(
            new_keys, cols * STRIDE, key_norm, cos, sin, before + cols, valid, eps, HALF, BLOCK_HALF, HAS_NORM
        )
        v = tl.load(new_values + cols[:, None] * STRIDE + dims[None, :], valid[:, None] & inside, other=0.0)
        scores_max, total, mixed = mix(
            q1, q2, k1, k2, v, cols[None, :] <= rows[:, None], scores_max, total, mixed, scale, True
        )
        if leads:
            slot = (before + cols)[:, None] * DIM
            half_mask = valid[:, None] & pairs
            tl.store(keys + slot + pair[None, :], k1, half_mask)
            tl.store(keys + slot + HALF + pair[None, :], k2, half_mask)
            tl.store(values + slot + dims[None, :], v, valid[:, None] & inside)
    attended = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(
        out + rows[:, None] * (NUM_QUERIES * DIM) + head * DIM + dims[None, :],
        attended,
        (rows < length)[:, None] & inside,
    )


BLOCKS = {}


def blocks(length):
    for most, shape in BLOCKS.items():
        if length <= most:
            return shape
    raise KeyError


def rotating_attend(self, qkv, start, heads, norms, slots):
    length = qkv.shape[0]
    out = qkv.new_empty(length, heads.query_width)
    block_m, block_n, warps, stages = blocks(length)
    query_norm, key_norm = _norms(norms, slots)
    half = heads.head_dim // 2
    self._launch(
        rotating_attend_kernel,
        (heads.num_heads, triton.cdiv(length, block_m)),
        (
            qkv,
            start,
            slots.keys,
            slots.values,
            slots.cos,
            slots.sin,
            query_norm,
            key_norm,
            out,
            length,
            slots.keys.stride(0),
            heads.eps,
            heads.scale * LOG2_E,
        ),
        NUM_QUERIES=heads.num_heads,
        NUM_KEYS=heads.num_kv_heads,
        HALF=half,
        BLOCK_HALF=max(16, triton.next_power_of_2(half)),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        HAS_NORM=norms.key is not None,
        num_warps=warps,
        num_stages=stages,
    )
    return out


torch.set_grad_enabled(False)
dev = torch.device("cuda")
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=dev, seed=0)
print("loaded", torch.cuda.get_device_name(), flush=True)
base = FusedForward(loaded.module)
cache = base.allocate_cache(576)
ids = torch.randint(32000, (576,), device=dev)
start = torch.zeros(1, dtype=torch.long, device=dev)
last = torch.zeros(1, dtype=torch.long, device=dev)
logits = torch.empty(32000, dtype=torch.float16, device=dev)
pool = torch.cuda.graph_pool_handle()


def capture(run):
    s = torch.cuda.Stream()
    s.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(s):
        run()
    s.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g, pool=pool):
        run()
    g.replay()
    torch.cuda.synchronize()
    return g


def timed(g, n, pause):
    out = []
    for _ in range(n):
        if pause:
            time.sleep(pause)
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        g.replay()
        b.record()
        b.synchronize()
        out.append(a.elapsed_time(b))
    return out


K = base._kernels
heads = base._heads
layer = base._weights.layers[0]
slots = cache.slots(0)
N = 31


def micro(fn):
    g = capture(lambda: [fn() for _ in range(N)])
    return median(timed(g, 30, 0.002)) / N * 1e3


shapes = [
    (16, 16, 4, 2),
    (32, 32, 4, 2),
    (64, 32, 4, 2),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 64, 8, 2),
    (128, 64, 8, 2),
    (128, 32, 8, 2),
    (128, 64, 8, 3),
]
lengths = (10, 50, 100, 150, 200, 250, 300, 350, 400)
best = {}
print("length pair", *shapes)
for length in lengths:
    qkv = torch.randn(length, 3 * 4096, device=dev).half()

    def pair():
        K.rotate_store(qkv, 32, start, heads, layer.head_norms, slots)
        K.attend(qkv, start, heads, slots)

    line = [micro(pair)]
    for shape in shapes:
        BLOCKS.clear()
        BLOCKS[10**6] = shape
        try:
            line.append(micro(lambda: rotating_attend(K, qkv, start, heads, layer.head_norms, slots)))
        except Exception as e:
            line.append(999.0)
            if length == 10:
                print(shape, repr(e)[:200])
    print(length, *(f"{x:.2f}" for x in line), flush=True)
    best[length] = shapes[min(range(len(shapes)), key=lambda i: line[i + 1])]
