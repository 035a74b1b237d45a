"""Triton kernels of attention over the static cache: a whole prompt, and one row split over the context."""

# mypy: ignore-errors
import triton
import triton.language as tl

from hybridgraph.kernels.rowwise import wait_for_inputs


@triton.jit
def attend_block(
    q, scores_max, total, mixed, keys, values, col, positions, end, scale,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys and values of the online softmax (Milakov and Gimelshein, 2018), in base 2."""
    dims = tl.arange(0, BLOCK_DIM)
    cols = col + tl.arange(0, BLOCK_N)
    inside = (dims < DIM)[None, :]
    if MASKED:
        inside = inside & (cols < end)[:, None]
    at = cols[:, None] * DIM + dims[None, :]
    k = tl.load(keys + at, inside, other=0.0)
    v = tl.load(values + at, inside, other=0.0)
    scores = tl.dot(q, k.T) * scale
    if MASKED:
        scores = tl.where(cols[None, :] <= positions[:, None], scores, float("-inf"))
    new_max = tl.maximum(scores_max, tl.max(scores, 1))
    p = tl.exp2(scores - new_max[:, None])
    shrink = tl.exp2(scores_max - new_max)
    total = total * shrink + tl.sum(p, 1)
    mixed = tl.dot(p.to(v.dtype), v, mixed * shrink[:, None])
    return new_max, total, mixed


@triton.jit
def nothing_attended(BLOCK_M: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Where the online softmax begins: largest scores, sums of exponentials, values mixed by them."""
    scores_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    return scores_max, tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)


# One binary for all lengths and buffers: a compilation in the background would hold the GIL while a request waits.
@triton.jit(do_not_specialize=["length"], do_not_specialize_on_alignment=["start"])
def attend_kernel(
    queries,  # [length, query_stride]: rotated
    start,  # int64 [1]: the first query's position
    keys,  # [kv_heads, positions, DIM]
    values,
    out,  # [length, heads * DIM]
    length,
    query_stride,
    out_stride,
    head_stride,
    scale,  # times log2(e)
    GROUP: tl.constexpr,  # query heads of one key head
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    head = tl.program_id(0)
    block = tl.num_programs(1) - 1 - tl.program_id(1)  # the longest rows first
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    before = tl.load(start).to(tl.int32)  # set before the first kernel starts: there is nothing to wait for
    positions = before + rows
    dims = tl.arange(0, BLOCK_DIM)
    mask = (rows < length)[:, None] & (dims < DIM)[None, :]
    keys += (head // GROUP).to(tl.int64) * head_stride
    values += (head // GROUP).to(tl.int64) * head_stride
    wait_for_inputs(PDL)
    q = tl.load(queries + rows[:, None] * query_stride + head * DIM + dims[None, :], mask, other=0.0)
    scores_max, total, mixed = nothing_attended(BLOCK_M, BLOCK_DIM)
    first = before + block * BLOCK_M
    end = tl.minimum(first + BLOCK_M, before + length)
    diagonal = first // BLOCK_N * BLOCK_N
    for col in range(0, diagonal, BLOCK_N):
        scores_max, total, mixed = attend_block(
            q, scores_max, total, mixed, keys, values, col, positions, end, scale, DIM, BLOCK_DIM, BLOCK_N, False
        )
    for col in range(diagonal, end, BLOCK_N):
        scores_max, total, mixed = attend_block(
            q, scores_max, total, mixed, keys, values, col, positions, end, scale, DIM, BLOCK_DIM, BLOCK_N, True
        )
    attended = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * out_stride + head * DIM + dims[None, :], attended, mask)


@triton.jit
def rotated_rows(
    rows, weight, cos, sin, heads, num_heads, eps, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, HAS_NORM: tl.constexpr
):
    """``heads`` of one position, rotated, in float32 [heads, BLOCK_DIM]; ``cos``, ``sin``: that position's."""
    HALF: tl.constexpr = DIM // 2
    dims = tl.arange(0, BLOCK_DIM)
    inside = dims < DIM
    partner = tl.where(dims < HALF, dims + HALF, dims - HALF)
    mask = (heads < num_heads)[:, None] & inside[None, :]
    x = tl.load(rows + heads[:, None] * DIM + dims[None, :], mask, other=0.0).to(tl.float32)
    y = tl.load(rows + heads[:, None] * DIM + partner[None, :], mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        rstd = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
        x = x * rstd * tl.load(weight + dims, inside, other=0.0).to(tl.float32)[None, :]
        y = y * rstd * tl.load(weight + partner, inside, other=0.0).to(tl.float32)[None, :]
    angle = tl.where(dims < HALF, dims, dims - HALF)
    c = tl.load(cos + angle, inside, other=0.0)[None, :]
    s = tl.load(sin + angle, inside, other=0.0)[None, :]
    return x * c + tl.where(dims < HALF, -1.0, 1.0)[None, :] * y * s


@triton.jit
def store_slot(
    new_key, new_value, keys, values, at, weight, cos, sin, eps,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """One head's key, rotated, and value to slot ``at``; afterwards the threads of this block may read them."""
    dims = tl.arange(0, BLOCK_DIM)
    inside = dims < DIM
    rotated = rotated_rows(new_key, weight, cos, sin, tl.arange(0, 1), 1, eps, DIM, BLOCK_DIM, HAS_NORM)
    tl.store(keys + at * DIM + dims[None, :], rotated.to(keys.dtype.element_ty), inside[None, :])
    tl.store(values + at * DIM + dims, tl.load(new_value + dims, inside, other=0.0), inside)
    tl.debug_barrier()


@triton.jit
def one_row_attend_kernel(
    qkv,  # [(kv_heads * GROUP + 2 * kv_heads) * DIM] where STORE, else queries only
    position,  # int64 [1]
    keys, values, cos, sin, query_norm, key_norm,
    partial,  # float32 [heads, SPLITS, DIM]
    summary,  # float32 [heads, SPLITS, 2]: largest score, sum of exponentials
    head_stride, eps, scale,
    GROUP: tl.constexpr, BLOCK_GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, HAS_NORM: tl.constexpr, STORE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0), tl.program_id(1)
    kv_heads = tl.num_programs(0)
    group = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    inside = dims < DIM
    keys += head.to(tl.int64) * head_stride
    values += head.to(tl.int64) * head_stride
    wait_for_inputs(PDL)
    at = tl.load(position).to(tl.int32)
    length = at + 1
    chunk = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N
    first = split * chunk
    end = tl.minimum(first + chunk, length)
    cos += at * (DIM // 2)
    sin += at * (DIM // 2)
    if STORE and (first <= at) & (at < end):
        new_key = qkv + (kv_heads * GROUP + head) * DIM
        new_value = new_key + kv_heads * DIM
        store_slot(new_key, new_value, keys, values, at, key_norm, cos, sin, eps, DIM, BLOCK_DIM, HAS_NORM)
    queries = qkv + head * GROUP * DIM
    q = rotated_rows(queries, query_norm, cos, sin, group, GROUP, eps, DIM, BLOCK_DIM, HAS_NORM)
    q = q.to(keys.dtype.element_ty)
    rows = tl.full((BLOCK_GROUP,), 0, tl.int32) + at
    scores_max, total, mixed = nothing_attended(BLOCK_GROUP, BLOCK_DIM)
    for start in range(first, end, BLOCK_N):
        scores_max, total, mixed = attend_block(
            q, scores_max, total, mixed, keys, values, start, rows, length, scale, DIM, BLOCK_DIM, BLOCK_N, True
        )
    part = (head * GROUP + group) * SPLITS + split
    valid = group < GROUP
    tl.store(summary + part * 2, scores_max, valid)
    tl.store(summary + part * 2 + 1, total, valid)
    tl.store(partial + part[:, None] * DIM + dims[None, :], mixed, valid[:, None] & inside[None, :])


@triton.jit
def combine_kernel(
    partial, summary, out, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr
):
    """Join the splits of one head: each counts by its sum of exponentials under the largest score of all."""
    head = tl.program_id(0)
    splits = head * SPLITS + tl.arange(0, SPLITS)
    dims = tl.arange(0, BLOCK_DIM)
    inside = dims < DIM
    wait_for_inputs(PDL)
    scores_max = tl.load(summary + splits * 2)
    share = tl.exp2(scores_max - tl.max(scores_max, 0))
    total = tl.sum(tl.load(summary + splits * 2 + 1) * share, 0)
    mixed = tl.load(partial + splits[:, None] * DIM + dims[None, :], inside[None, :], other=0.0)
    attended = tl.sum(mixed * share[:, None], 0) / total
    tl.store(out + head * DIM + dims, attended.to(out.dtype.element_ty), inside)
