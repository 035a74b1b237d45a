"""Every tuned constant of the kernels: what it decides, and how it is measured again.

``python -m hybridgraph.kernels.tune`` measures each of them on the GPU it runs on and prints it beside what stands
here; ``bench`` beside it shows what every kernel takes. The history of these numbers is in README.md. Plain Python.

What is no choice stays with its kernel: the shape of a tensor-core instruction, the bytes of shared memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

WIDE_ROW = 2048  # elements from which on a row-wise program takes 8 warps instead of 4
LONG_ROW = 8192  # columns beyond which a matrix is long; 4,096 and 11,008 were measured, nothing in between
TALL_ROWS = 4096  # rows beyond which a matrix is tall; 4,096 and 12,288 were measured, nothing in between


@dataclass(frozen=True)
class GemvBlock:
    """One program of a row times a matrix."""

    rows: int  # of the matrix
    columns: int  # of a step
    warps: int


@dataclass(frozen=True)
class AttendBlock:
    """One program of prefill attention."""

    queries: int
    keys: int  # of a step
    warps: int
    stages: int  # of the loads' pipeline


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Block shapes of the Triton kernels: measured on one H200 with Llama-2-7B's matrices, in float16.

    Nothing is tuned at run time, so nothing can be tuned inside a capture.
    """

    # One row times a matrix, by the kind of matrix: merged gate and up; long rows (down); many rows (merged query, key
    # and value; the head); what is left (attention's output).
    gemv_swiglu: GemvBlock = GemvBlock(1, 1024, 4)
    gemv_long: GemvBlock = GemvBlock(4, 1024, 4)
    gemv_tall: GemvBlock = GemvBlock(4, 2048, 8)
    gemv_square: GemvBlock = GemvBlock(2, 2048, 4)
    # Prefill attention: few queries waste a block of 64; of long prompts a third stage hides more of the loads.
    attend_few: AttendBlock = AttendBlock(16, 32, 4, 2)
    attend_some: AttendBlock = AttendBlock(64, 64, 4, 2)
    attend_many: AttendBlock = AttendBlock(64, 64, 4, 3)
    few_queries: int = 16  # up to which ``attend_few`` serves
    some_queries: int = 300  # up to which ``attend_some`` serves
    # One row's attention: programs in all (two a multiprocessor), and splits of the context: more take longer to join.
    attention_programs: int = 256
    attention_splits: int = 32
    rotate_heads: int = 8  # of a program of the rotation, with four warps
    swiglu_columns: int = 1024  # of a program of SwiGLU, with four warps
    # Rows up to which a norm takes eight warps. Beyond, four: so few registers that a block of the next GEMM, which
    # needs more of them for more rows, starts beside it.
    wide_norm_rows: int = 128

    def gemv(self, *, num_rows: int, width: int, swiglu: bool) -> GemvBlock:
        """The program of one row times a matrix [num_rows, width]; of ``swiglu``, of two such matrices."""
        if swiglu:
            block = self.gemv_swiglu
        elif width > LONG_ROW:
            block = self.gemv_long
        else:
            block = self.gemv_tall if num_rows > TALL_ROWS else self.gemv_square
        return replace(block, columns=min(block.columns, max(16, next_power_of_2(width))))

    def attend(self, length: int) -> AttendBlock:
        """The program of prefill attention over ``length`` queries."""
        if length <= self.few_queries:
            return self.attend_few
        return self.attend_some if length <= self.some_queries else self.attend_many

    def rotate(self, num_queries: int, num_keys: int, splits: int) -> tuple[int, int, int]:
        """(rows of a program, heads of each, warps) of the rotation; of one row where there are sums to add."""
        together = self.rotate_heads
        heads = math.gcd(num_queries, num_keys, together)
        rows = together // heads if splits == 1 else 1
        return rows, heads, 4 if rows * heads == together else 1

    def one_row_splits(self, num_kv_heads: int) -> int:
        """Splits of the context of one row's attention."""
        return max(1, min(self.attention_splits, next_power_of_2(self.attention_programs // num_kv_heads)))

    def row_warps(self, width: int, rows: int = 1) -> int:
        """Warps of a row-wise program; ``rows``: where a GEMM follows that is to start beside it."""
        return 8 if width >= WIDE_ROW and rows <= self.wide_norm_rows else 4


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Hopper: up to how many rows custom GEMMs are quicker than cuBLAS's and the kernels that those need.

    Above, arithmetic sets the pace, where cuBLAS is hard to beat. By chip: where memory is slower, weights set the
    pace for longer.
    """

    projected: int  # query, key and value: split-K partial sums, which the rotation adds up
    swiglu: int  # gate and up, with SwiGLU as the epilogue
    added: int  # down: split-K partial sums, which the next norm adds up
    square: int  # attention's output: the same, where the reduction is no longer than the output is wide
    narrow: int = 300  # for weights of few units, whose blocks have fewer warpgroups
    # The same four, up to how many rows of them packed weights are quicker than whatever reads plain ones (on an H200).
    packed_projected: int = 160
    packed_swiglu: int = 80
    packed_added: int = 112
    packed_square: int = 128


LIMITS = {
    "H100": Limits(projected=96, swiglu=264, added=400, square=136),
    "H200": Limits(projected=64, swiglu=240, added=310, square=200),
}

# The custom GEMMs' tiles.
SHARING_TOKENS = 32  # from which on two blocks of a cluster share their loads of tokens
ENOUGH_PARTS = 4  # of a split reduction: narrower tiles that leave room for fewer are no faster
# Not timed by ``tune``. The first trades time for compiling; the others are what more of changes nothing, or does not
# compile (tests/test_gemm.py).
COARSE_TOKENS = 128  # up to which tokens are padded to 16 instead of 8: each tile is another kernel to compile
MAX_STAGES = 12  # of the ring: no tile that serves a long matrix has room for more
MOST_ACROSS = 200  # tokens of one wgmma: of more, a thread's sums do not fit the registers that it starts with


@dataclass(frozen=True)
class PackedRow:
    """Hopper: one row times a packed matrix."""

    warps: int = 16  # that multiply; each takes a tile of a stage
    # Of a block. More than half of what a multiprocessor has: two blocks of a kernel on one would leave others idle.
    shared_bytes: int = 118 * 1024


PACKED_ROW = PackedRow()
MOST_EXCEPTIONS = 1e-3  # of all weights: one of them costs a warp what many packed ones do


def limits_on(chip: str) -> Limits:
    """Those of the device that calls itself ``chip``; of a Hopper that was not measured, the H200's."""
    return next((limits for name, limits in LIMITS.items() if name in chip), LIMITS["H200"])


def next_power_of_2(number: int) -> int:
    """The least power of 2 that is no less than ``number``; 0 of 0."""
    return 1 << (number - 1).bit_length() if number > 0 else 0
