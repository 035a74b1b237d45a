"""A Triton kernel that multiplies one row by a matrix: it streams the weights and fuses what stands around them."""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def streamed(weight, up, start, cols, inside, WIDTH: tl.constexpr, SWIGLU: tl.constexpr):
    """Columns ``cols`` of the rows that begin at ``start``, of ``up`` too where SWIGLU; read once only."""
    mask = inside[:, None] & (cols < WIDTH)[None, :]
    w = tl.load(weight + start[:, None] + cols[None, :], mask, other=0.0, eviction_policy="evict_first")
    u = w
    if SWIGLU:
        u = tl.load(up + start[:, None] + cols[None, :], mask, other=0.0, eviction_policy="evict_first")
    return w, u


@triton.jit
def gemv_kernel(
    row,  # [WIDTH]
    weight,  # [num_rows, WIDTH]; where SWIGLU, [2 * num_rows, WIDTH]: gate, then up
    norm,  # [WIDTH], read where NORM
    bias,  # [num_rows], read where BIAS
    out,  # [num_rows]; where ADD, added to
    eps, num_rows, WIDTH: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, SWIGLU: tl.constexpr, ADD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < num_rows
    start = rows.to(tl.int64) * WIDTH
    cols = tl.arange(0, BLOCK_K)
    up = weight + tl.cast(num_rows, tl.int64) * WIDTH  # 1 is a constant, without methods
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # The first weights are on their way while the kernel before still runs: they depend on nothing.
    w, u = streamed(weight, up, start, cols, inside, WIDTH, SWIGLU)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for k in tl.static_range(0, WIDTH, BLOCK_K):
        at = k + cols
        if k > 0:
            w, u = streamed(weight, up, start, at, inside, WIDTH, SWIGLU)
        x = tl.load(row + at, at < WIDTH, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x = x * tl.load(norm + at, at < WIDTH, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * x[None, :]
        if SWIGLU:
            up_total += u.to(tl.float32) * x[None, :]
    y = tl.sum(total, 1)
    if NORM:
        rstd = tl.rsqrt(tl.sum(squares) / WIDTH + eps)
        y = y * rstd
    if SWIGLU:
        y = y * tl.sigmoid(y) * tl.sum(up_total, 1) * rstd
    if BIAS:
        y += tl.load(bias + rows, inside, other=0.0).to(tl.float32)
    if ADD:
        y += tl.load(out + rows, inside, other=0.0).to(tl.float32)
    tl.store(out + rows, y.to(out.dtype.element_ty), inside)
