"""The rotation's kernel as it was: programs of one row."""

# mypy: ignore-errors
import triton
import triton.language as tl

from hybridgraph.forward.kernels.rowwise import wait_for_inputs


@triton.jit
def rotated_halves(x, y, c, s, weight, pair, pairs, eps, HALF: tl.constexpr, HAS_NORM: tl.constexpr):
    """Heads, normed and turned by one position's angles; the halves of their coordinates are float32 [heads, HALF]."""
    if HAS_NORM:
        rstd = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / (2 * HALF) + eps)[:, None]
        x = x * rstd * tl.load(weight + pair, pairs, other=0.0).to(tl.float32)[None, :]
        y = y * rstd * tl.load(weight + HALF + pair, pairs, other=0.0).to(tl.float32)[None, :]
    return x * c - y * s, y * c + x * s


@triton.jit(do_not_specialize_on_alignment=["start"])
def rotate_store_kernel(
    qkv,  # [SPLITS, rows, (NUM_QUERIES + 2 * NUM_KEYS) * 2 * HALF]: partial sums; rotated queries go to the first
    start,  # int64 [1]: the first row's position
    keys,  # [NUM_KEYS, positions, 2 * HALF]
    values,
    cos,  # [positions, HALF]
    sin,
    query_norm,  # [2 * HALF], read where HAS_NORM
    key_norm,
    head_stride,  # of keys and values
    eps, SPLITS: tl.constexpr, NUM_QUERIES: tl.constexpr, NUM_KEYS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,  # divides NUM_QUERIES and NUM_KEYS
    BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    first_head = tl.program_id(1) * BLOCK_HEADS
    pair = tl.arange(0, BLOCK_HALF)
    pairs = pair < HALF
    heads = tl.arange(0, BLOCK_HEADS)
    mask = (heads[:, None] >= 0) & pairs[None, :]
    position = row + tl.load(start)  # no kernel's output either: it is set before the first one starts
    c = tl.load(cos + position * HALF + pair, pairs, other=0.0)[None, :]
    s = tl.load(sin + position * HALF + pair, pairs, other=0.0)[None, :]
    wait_for_inputs(PDL)
    WIDTH: tl.constexpr = (NUM_QUERIES + 2 * NUM_KEYS) * 2 * HALF
    source = qkv + row.to(tl.int64) * WIDTH
    at = (first_head + heads)[:, None] * (2 * HALF) + pair[None, :]
    first = tl.load(source + at, mask, other=0.0).to(tl.float32)
    second = tl.load(source + at + HALF, mask, other=0.0).to(tl.float32)
    for split in tl.static_range(1, SPLITS):
        partial = source + split * tl.num_programs(0).to(tl.int64) * WIDTH + at
        first += tl.load(partial, mask, other=0.0).to(tl.float32)
        second += tl.load(partial + HALF, mask, other=0.0).to(tl.float32)
    slot = position * 2 * HALF + pair[None, :]
    if first_head < NUM_QUERIES:
        x, y = rotated_halves(first, second, c, s, query_norm, pair, pairs, eps, HALF, HAS_NORM)
        target = source + at
    elif first_head < NUM_QUERIES + NUM_KEYS:
        x, y = rotated_halves(first, second, c, s, key_norm, pair, pairs, eps, HALF, HAS_NORM)
        target = keys + (first_head - NUM_QUERIES + heads)[:, None] * head_stride + slot
    else:
        x, y = first, second
        target = values + (first_head - NUM_QUERIES - NUM_KEYS + heads)[:, None] * head_stride + slot
    tl.store(target, x.to(qkv.dtype.element_ty), mask)
    tl.store(target + HALF, y.to(qkv.dtype.element_ty), mask)
