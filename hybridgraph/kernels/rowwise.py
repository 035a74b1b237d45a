"""Triton kernels that pass over activations once: norms, rotation with the cache write, SwiGLU.

``PDL``: the kernel may be launched while the one before it ends (programmatic dependent launch); it
reads nothing that kernel wrote before ``gdc_wait`` returns. Weights are no kernel's output.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Let the next kernel launch, then wait until everything the kernels before have written can be seen."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def store_norm(x, scale, target, mask, eps, WIDTH: tl.constexpr):
    """RMSNorm of a row, float32, times ``scale``, to the pointers ``target``."""
    rstd = tl.rsqrt(tl.sum(x * x) / WIDTH + eps)
    tl.store(target, (x * rstd * scale).to(target.dtype.element_ty), mask)


@triton.jit(do_not_specialize_on_alignment=["start"])  # one binary for every buffer
def embed_norm_kernel(
    ids, start, table, weight, hidden, normed, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < WIDTH
    scale = tl.load(weight + cols, mask, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    x = tl.load(table + tl.load(ids + tl.load(start) + row) * WIDTH + cols, mask, other=0.0)
    tl.store(hidden + row * WIDTH + cols, x, mask)
    store_norm(x.to(tl.float32), scale, normed + row * WIDTH + cols, mask, eps, WIDTH)


@triton.jit
def norm_kernel(hidden, weight, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < WIDTH
    scale = tl.load(weight + cols, mask, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    x = tl.load(hidden + row * WIDTH + cols, mask, other=0.0).to(tl.float32)
    store_norm(x, scale, out + row * WIDTH + cols, mask, eps, WIDTH)


@triton.jit
def add_norm_kernel(
    hidden,  # [rows, WIDTH], added to
    partial,  # [SPLITS, rows, WIDTH]: partial sums of a GEMM
    weight,
    out,
    eps,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.num_programs(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < WIDTH
    scale = tl.load(weight + cols, mask, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    x = tl.load(hidden + row * WIDTH + cols, mask, other=0.0).to(tl.float32)
    for split in tl.static_range(SPLITS):
        x += tl.load(partial + (split * num_rows + row) * WIDTH + cols, mask, other=0.0).to(tl.float32)
    added = x.to(hidden.dtype.element_ty)
    tl.store(hidden + row * WIDTH + cols, added, mask)
    store_norm(added.to(tl.float32), scale, out + row * WIDTH + cols, mask, eps, WIDTH)


@triton.jit
def swiglu_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < WIDTH
    wait_for_inputs(PDL)
    gate = tl.load(gate_up + row * 2 * WIDTH + cols, mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + cols, mask, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + cols, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask)


@triton.jit
def rotated_halves(x, y, c, s, weight, pair, pairs, eps, HALF: tl.constexpr, HAS_NORM: tl.constexpr):
    """Heads, normed and turned by their positions' angles; the coordinates' halves are float32 [heads, HALF]."""
    if HAS_NORM:
        rstd = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / (2 * HALF) + eps)[:, None]
        x = x * rstd * tl.load(weight + pair, pairs, other=0.0).to(tl.float32)
        y = y * rstd * tl.load(weight + HALF + pair, pairs, other=0.0).to(tl.float32)
    return x * c - y * s, y * c + x * s


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["start"])
def rotate_store_kernel(
    qkv,  # [SPLITS, num_rows, (NUM_QUERIES + 2 * NUM_KEYS) * 2 * HALF]: partial sums; rotated queries go to the first
    start,  # int64 [1]: the first row's position
    keys,  # [NUM_KEYS, positions, 2 * HALF]
    values,
    cos,  # [positions, HALF]
    sin,
    query_norm,  # [2 * HALF], read where HAS_NORM
    key_norm,
    head_stride,  # of keys and values
    num_rows, eps, SPLITS: tl.constexpr, NUM_QUERIES: tl.constexpr, NUM_KEYS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,  # divides NUM_QUERIES and NUM_KEYS
    BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    first_head = tl.program_id(1) * BLOCK_HEADS
    item = tl.arange(0, BLOCK_ROWS * BLOCK_HEADS)[:, None]  # one row's head
    row, head = tl.program_id(0) * BLOCK_ROWS + item // BLOCK_HEADS, first_head + item % BLOCK_HEADS
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    pairs = pair < HALF
    mask = (row < num_rows) & pairs
    position = row + tl.load(start)  # no kernel's output either: it is set before the first one starts
    c = tl.load(cos + position * HALF + pair, mask, other=0.0)
    s = tl.load(sin + position * HALF + pair, mask, other=0.0)
    wait_for_inputs(PDL)
    WIDTH: tl.constexpr = (NUM_QUERIES + 2 * NUM_KEYS) * 2 * HALF
    source = qkv + row.to(tl.int64) * WIDTH + head * (2 * HALF) + pair
    first = tl.load(source, mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask, other=0.0).to(tl.float32)
    for split in tl.static_range(1, SPLITS):
        partial = source + split * num_rows.to(tl.int64) * WIDTH
        first += tl.load(partial, mask, other=0.0).to(tl.float32)
        second += tl.load(partial + HALF, mask, other=0.0).to(tl.float32)
    slot = position * 2 * HALF + pair
    if first_head < NUM_QUERIES:
        x, y = rotated_halves(first, second, c, s, query_norm, pair, pairs, eps, HALF, HAS_NORM)
        target = source
    elif first_head < NUM_QUERIES + NUM_KEYS:
        x, y = rotated_halves(first, second, c, s, key_norm, pair, pairs, eps, HALF, HAS_NORM)
        target = keys + (head - NUM_QUERIES) * head_stride + slot
    else:
        x, y = first, second
        target = values + (head - NUM_QUERIES - NUM_KEYS) * head_stride + slot
    tl.store(target, x.to(qkv.dtype.element_ty), mask)
    tl.store(target + HALF, y.to(qkv.dtype.element_ty), mask)
