"""The fused forward's kernels on Hopper: Triton's, with custom GEMMs where a prompt is short.

Where arithmetic sets the pace cuBLAS is hard to beat. Up to some two hundred tokens reading the weights does, and there
a GEMM gains by what surrounds it: it starts before the previous kernel has ended, and its epilogue is SwiGLU, or
split-K partial sums that the next kernel, a norm or the rotation, adds up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hybridgraph.kernels.hopper.gemm import UNIT, Gemm, Tile, compile_together
from hybridgraph.kernels.portable import TritonKernels

MAX_WARPGROUPS = 3
SHARING_TOKENS = 32  # from which on the blocks of a cluster share their loads of tokens
ENOUGH_PARTS = 4  # of a split reduction: narrower tiles that leave room for fewer are no faster
NARROW_TOKENS = 300  # up to which narrowed tiles are faster than cuBLAS


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Up to how many tokens custom GEMMs were faster than cuBLAS and the kernels that they replace."""

    projected: int
    swiglu: int
    added: int
    square: int  # added, where the reduction is no longer than the output is wide


# By measurement (README.md beside this). The H100's memory is slower, so that weights set the pace for longer.
LIMITS = {
    "H100": Limits(projected=96, swiglu=264, added=400, square=136),
    "H200": Limits(projected=64, swiglu=240, added=310, square=200),
}


class HopperKernels(TritonKernels):
    """Implements Kernels in float16 and bfloat16 on a device of compute capability 9.0."""

    name = "hopper"

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits

    def prepare(self, lengths: Sequence[int], qkv: Tensor, gate_up: Tensor, adding: Sequence[Tensor]) -> None:
        wanted = [self._projected(length, qkv) for length in lengths]
        wanted += [self._swiglu(length, gate_up) for length in lengths]
        wanted += [self._added(length, weight) for weight in adding for length in lengths]
        compile_together({gemm for gemm in wanted if gemm is not None}, gate_up.dtype)

    def project(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        gemm = self._projected(rows.shape[0], weight)
        if gemm is None or bias is not None:
            return super().project(rows, weight, bias)
        return self._sums(gemm, rows, weight)

    def linear_swiglu(self, rows: Tensor, gate_up: Tensor) -> Tensor:
        gemm = self._swiglu(rows.shape[0], gate_up)
        if gemm is None:
            return super().linear_swiglu(rows, gate_up)
        out = rows.new_empty(rows.shape[0], gate_up.shape[0] // 2)
        gemm(rows, gate_up, out, overlap=self._overlap)
        return out

    def linear_add_norm(self, hidden: Tensor, rows: Tensor, weight: Tensor, norm: Tensor, eps: float) -> Tensor:
        gemm = self._added(rows.shape[0], weight)
        if gemm is None:
            return super().linear_add_norm(hidden, rows, weight, norm, eps)
        return self.add_norm(hidden, self._sums(gemm, rows, weight), norm, eps)

    def _sums(self, gemm: Gemm, rows: Tensor, weight: Tensor) -> Tensor:
        out = rows.new_empty(gemm.splits, rows.shape[0], weight.shape[0])
        gemm(rows, weight, out, overlap=self._overlap)
        return out

    def _projected(self, num_rows: int, qkv: Tensor) -> Gemm | None:
        """Our GEMM for this shape, or None where cuBLAS serves it."""
        return split_k_gemm(num_rows, qkv, most_warpgroups=3) if num_rows <= self._limits.projected else None

    def _swiglu(self, num_rows: int, gate_up: Tensor) -> Gemm | None:
        """Our GEMM for this shape, or None where cuBLAS serves it."""
        warpgroups = math.ceil(gate_up.shape[0] / UNIT / multiprocessors(gate_up.device))
        if num_rows > self._limits.swiglu or warpgroups > MAX_WARPGROUPS or not fits(gate_up):
            return None
        return Gemm("store_swiglu", tile_for(num_rows, warpgroups))

    def _added(self, num_rows: int, weight: Tensor) -> Gemm | None:
        """Our GEMM for this shape, or None where cuBLAS serves it."""
        width, inner = weight.shape
        most = self._limits.added if inner > width else self._limits.square
        return split_k_gemm(num_rows, weight, most_warpgroups=2) if num_rows <= most else None


def limits_on(chip: str) -> Limits:
    """Those of the device that calls itself ``chip``; of a Hopper that was not measured, the H200's."""
    return next((limits for name, limits in LIMITS.items() if name in chip), LIMITS["H200"])


def split_k_gemm(num_rows: int, weight: Tensor, *, most_warpgroups: int) -> Gemm | None:
    """A GEMM whose reduction is split so that its blocks fill the chip once, or None where cuBLAS serves it.

    A block has ``most_warpgroups``, or, of a weight with few units, the fewest that leave room for enough parts.
    """
    width, inner = weight.shape
    units, most_parts, room = math.ceil(width / UNIT), math.ceil(inner / 256), multiprocessors(weight.device)
    enough = min(ENOUGH_PARTS, most_parts)
    narrow = (n for n in range(1, most_warpgroups) if math.ceil(units / n) * enough <= room)
    warpgroups = next(narrow, most_warpgroups)
    if not fits(weight) or (warpgroups < most_warpgroups and num_rows > NARROW_TOKENS):
        return None
    tile = tile_for(num_rows, warpgroups)
    blocks = math.ceil(math.ceil(units / warpgroups) / tile.cluster) * tile.cluster
    splits = min(room // blocks, most_parts)
    return Gemm("store_partial", tile, splits) if splits > 1 else None


def tile_for(num_tokens: int, warpgroups: int) -> Tile:
    step = 16 if num_tokens <= 128 else 8  # coarser where tokens cost little: each is another kernel to compile
    tokens = math.ceil(num_tokens / step) * step
    return Tile(warpgroups, tokens, 2 if tokens >= SHARING_TOKENS else 1)


def fits(weight: Tensor) -> bool:
    """Whether tensor maps can describe units of it."""
    rows, columns = weight.shape
    return rows % UNIT == 0 and columns % 8 == 0 and weight.is_contiguous()


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
