"""The fused forward's kernels on Hopper: Triton's, with custom GEMMs where a prompt is short.

Where arithmetic sets the pace cuBLAS is hard to beat. Up to some two hundred tokens reading the weights does, and there
a GEMM gains by what surrounds it: it starts before the previous kernel has ended, and its epilogue is SwiGLU, or
split-K partial sums that the next kernel, a norm or the rotation, adds up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hybridgraph.kernels.heuristics import ENOUGH_PARTS, Blocks, Limits
from hybridgraph.kernels.hopper.gemm import UNIT, Gemm, tile_for
from hybridgraph.kernels.hopper.gemm import program_of as gemm_program
from hybridgraph.kernels.hopper.gemv import gemv_of
from hybridgraph.kernels.hopper.gemv import program_of as gemv_program
from hybridgraph.kernels.hopper.nvrtc import compile_together, multiprocessors
from hybridgraph.kernels.packed import PackedMatrix
from hybridgraph.kernels.portable import TritonKernels
from hybridgraph.kernels.protocol import Matrix

MAX_WARPGROUPS = 3  # of a block: more leave a thread too few registers for its sums


class HopperKernels(TritonKernels):
    """Implements Kernels in float16 and bfloat16 on a device of compute capability 9.0."""

    name = "hopper"
    reads_packed = True

    def __init__(self, limits: Limits, blocks: Blocks | None = None) -> None:
        super().__init__(blocks)
        self._limits = limits

    def prepare(self, lengths: Sequence[int], qkv: Matrix, gate_up: Matrix, adding: Sequence[Matrix]) -> None:
        wanted = [self._projected(length, qkv) for length in lengths]
        wanted += [self._swiglu(length, gate_up) for length in lengths]
        wanted += [self._added(length, weight) for weight in adding for length in lengths]
        programs = [gemm_program(gemm.epilogue, gemm.tile, dtype_of(gate_up)) for gemm, _ in filter(None, wanted)]
        one_row = [(qkv, {"norm": True}), (gate_up, {"norm": True}), *((weight, {"add": True}) for weight in adding)]
        programs += [gemv_program(gemv_of(of, **how)) for of, how in one_row if isinstance(of, PackedMatrix)]
        compile_together(programs)

    def project(self, rows: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        custom = self._projected(rows.shape[0], weight)
        if custom is None or bias is not None:
            return super().project(rows, weight, bias)
        return self._sums(*custom, rows)

    def linear_swiglu(self, rows: Tensor, gate_up: Matrix) -> Tensor:
        custom = self._swiglu(rows.shape[0], gate_up)
        if custom is None:
            return super().linear_swiglu(rows, gate_up)
        gemm, weight = custom
        out = rows.new_empty(rows.shape[0], gate_up.shape[0] // 2)
        gemm(rows, weight, out, overlap=self._overlap)
        return out

    def linear_add_norm(self, hidden: Tensor, rows: Tensor, weight: Matrix, norm: Tensor, eps: float) -> Tensor:
        custom = self._added(rows.shape[0], weight)
        if custom is None:
            return super().linear_add_norm(hidden, rows, weight, norm, eps)
        return self.add_norm(hidden, self._sums(*custom, rows), norm, eps)

    def one_row_linear(
        self, hidden: Tensor, norm: Tensor, eps: float, weight: Matrix, bias: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        if isinstance(weight, Tensor):
            return super().one_row_linear(hidden, norm, eps, weight, bias, out)
        out = hidden.new_empty(1, weight.shape[0]) if out is None else out
        gemv = gemv_of(weight, norm=True, bias=bias is not None)
        gemv(hidden, weight, out, norm=norm, eps=eps, bias=bias, overlap=self._overlap)
        return out

    def one_row_add(self, hidden: Tensor, row: Tensor, weight: Matrix) -> None:
        if isinstance(weight, Tensor):
            super().one_row_add(hidden, row, weight)
        else:
            gemv_of(weight, add=True)(row, weight, hidden, overlap=self._overlap)

    def one_row_swiglu(self, hidden: Tensor, norm: Tensor, eps: float, gate_up: Matrix) -> Tensor:
        if isinstance(gate_up, Tensor):
            return super().one_row_swiglu(hidden, norm, eps, gate_up)
        out = hidden.new_empty(1, gate_up.shape[0] // 2)
        gemv_of(gate_up, norm=True)(hidden, gate_up, out, norm=norm, eps=eps, overlap=self._overlap)
        return out

    def _sums(self, gemm: Gemm, weight: Matrix, rows: Tensor) -> Tensor:
        out = rows.new_empty(gemm.splits, rows.shape[0], weight.shape[0])
        gemm(rows, weight, out, overlap=self._overlap)
        return out

    # Each of these: our GEMM for so many rows, and which of the weight's forms it reads; or None where cuBLAS serves.

    def _projected(self, num_rows: int, qkv: Matrix) -> tuple[Gemm, Matrix] | None:
        qkv = read_form(qkv, num_rows <= self._limits.packed_projected)
        if num_rows > self._limits.projected and isinstance(qkv, Tensor):
            return None
        return self._split_k(num_rows, qkv, most_warpgroups=3)

    def _swiglu(self, num_rows: int, gate_up: Matrix) -> tuple[Gemm, Matrix] | None:
        gate_up = read_form(gate_up, num_rows <= self._limits.packed_swiglu)
        warpgroups = math.ceil(gate_up.shape[0] / UNIT / multiprocessors(gate_up.device))
        too_many = num_rows > self._limits.swiglu and isinstance(gate_up, Tensor)
        if too_many or warpgroups > MAX_WARPGROUPS or not fits(gate_up):
            return None
        return Gemm("store_swiglu", tile_for(num_rows, warpgroups, **kind_of(gate_up))), gate_up

    def _added(self, num_rows: int, weight: Matrix) -> tuple[Gemm, Matrix] | None:
        limits = self._limits
        is_long = weight.shape[1] > weight.shape[0]
        weight = read_form(weight, num_rows <= (limits.packed_added if is_long else limits.packed_square))
        if num_rows > (limits.added if is_long else limits.square) and isinstance(weight, Tensor):
            return None
        return self._split_k(num_rows, weight, most_warpgroups=2)

    def _split_k(self, num_rows: int, weight: Matrix, most_warpgroups: int) -> tuple[Gemm, Matrix] | None:
        gemm = split_k_gemm(num_rows, weight, most_warpgroups=most_warpgroups, narrow=self._limits.narrow)
        return None if gemm is None else (gemm, weight)


def read_form(weight: Matrix, packed: bool) -> Matrix:
    """The packed form of ``weight`` where it has one and that is wanted or all there is, else the plain one."""
    if isinstance(weight, Tensor) or packed or weight.plain is None:
        return weight
    return weight.plain


def kind_of(weight: Matrix) -> dict[str, bool]:
    """What a tile of it is compiled for."""
    if isinstance(weight, Tensor):
        return {"packed": False, "exceptions": False}
    return {"packed": True, "exceptions": weight.num_exceptions > 0}


def dtype_of(weight: Matrix) -> torch.dtype:
    return weight.dtype if isinstance(weight, Tensor) else torch.float16


def split_k_gemm(
    num_rows: int, weight: Matrix, *, most_warpgroups: int, narrow: int, enough_parts: int = ENOUGH_PARTS
) -> Gemm | None:
    """A GEMM whose reduction is split so that its blocks fill the chip once, or None where cuBLAS serves it.

    A block has ``most_warpgroups``, or, of a weight with few units and up to ``narrow`` rows, the fewest that leave
    room for ``enough_parts``.
    """
    width, inner = weight.shape
    units, most_parts, room = math.ceil(width / UNIT), math.ceil(inner / 256), multiprocessors(weight.device)
    enough = min(enough_parts, most_parts)
    narrower = (n for n in range(1, most_warpgroups) if math.ceil(units / n) * enough <= room)
    warpgroups = next(narrower, most_warpgroups)
    if not fits(weight) or (warpgroups < most_warpgroups and num_rows > narrow):
        return None
    tile = tile_for(num_rows, warpgroups, **kind_of(weight))
    blocks = math.ceil(math.ceil(units / warpgroups) / tile.cluster) * tile.cluster
    splits = min(room // blocks, most_parts)
    return Gemm("store_partial", tile, splits) if splits > 1 else None


def fits(weight: Matrix) -> bool:
    """Whether it consists of whole units, which tensor maps can describe where it is plain."""
    rows, columns = weight.shape
    return rows % UNIT == 0 and columns % 8 == 0 and (isinstance(weight, PackedMatrix) or weight.is_contiguous())
