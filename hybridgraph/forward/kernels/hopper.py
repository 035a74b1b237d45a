"""The fused forward's kernels on Hopper: Triton's, with own products where they were measured to be faster.

An own product gains by what stands around it: it loads its first weights before the kernel in front has ended, and
it ends with what would be a kernel of its own, SwiGLU, the residual, or rotation with the cache write.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from hybridgraph.forward.kernels import HeadNorms, Heads, Slots
from hybridgraph.forward.kernels.product import UNIT, Add, Epilogue, Pairs, Rotate, Swiglu, Tile, launch
from hybridgraph.forward.kernels.triton import TritonKernels

# A warpgroup's sums and addresses must fit its registers, of which more warpgroups leave each fewer.
MOST_TOKENS = {3: 200, 2: 256, 1: 256}
SHARING_TOKENS = 32  # from which on blocks share their loads of them


class HopperKernels(TritonKernels):
    """Implements Kernels in float16 and bfloat16 on a device of compute capability 9.0."""

    name = "hopper"

    def linear_rotate(
        self,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        num_queries: int,
        start: Tensor,
        heads: Heads,
        norms: HeadNorms,
        slots: Slots,
    ) -> Tensor:
        tile = self._tile(rows, weight)
        if tile is None or norms.key is not None or heads.dim % UNIT:
            return super().linear_rotate(rows, weight, bias, num_queries, start, heads, norms, slots)
        queries = rows.new_empty(rows.shape[0], num_queries * heads.dim)
        pointers = (queries, slots.keys, slots.values, slots.cos, slots.sin, bias, start)
        epilogue = Rotate(
            *(0 if tensor is None else tensor.data_ptr() for tensor in pointers),
            slots.keys.stride(0),
            num_queries,
            heads.keys,
            heads.dim,
        )
        self._product(rows, weight, Pairs(heads.dim // 2, heads.dim), epilogue, tile)
        return queries

    def linear_swiglu(self, rows: Tensor, gate_up: Tensor) -> Tensor:
        tile = self._tile(rows, gate_up)
        if tile is None:
            return super().linear_swiglu(rows, gate_up)
        num_rows, width = gate_up.shape[0], gate_up.shape[0] // 2
        out = rows.new_empty(rows.shape[0], width)
        self._product(rows, gate_up, Pairs(width, num_rows), Swiglu(out.data_ptr(), width), tile)
        return out

    def linear_add_norm(self, hidden: Tensor, rows: Tensor, weight: Tensor, norm: Tensor, eps: float) -> Tensor:
        tile = self._tile(rows, weight)
        if tile is None:
            return super().linear_add_norm(hidden, rows, weight, norm, eps)
        width = weight.shape[0]
        self._product(rows, weight, Pairs(8, width), Add(hidden.data_ptr(), width), tile)
        return self.norm(hidden, norm, eps)

    def _tile(self, rows: Tensor, weight: Tensor) -> Tile | None:
        return tile_for(weight.shape[0], rows.shape[0], multiprocessors(rows.device)) if fits(weight) else None

    def _product(self, rows: Tensor, weight: Tensor, pairs: Pairs, epilogue: Epilogue, tile: Tile) -> None:
        launch(rows, weight, pairs, epilogue, tile, overlap=self._overlap)


@cache
def tile_for(num_rows: int, num_tokens: int, multiprocessors: int) -> Tile | None:
    """The tile whose blocks, one on each multiprocessor, have the least to do; None where there are always too many."""
    units = num_rows // UNIT
    found: dict[float, Tile] = {}
    for warpgroups, most in MOST_TOKENS.items():
        pieces = math.ceil(num_tokens / most)
        tokens = _rounded(math.ceil(num_tokens / pieces))
        for splits in (4, 2, 1):
            sharing = min(8 // splits, 4) if tokens >= SHARING_TOKENS else 1
            blocks = math.ceil(math.ceil(units / warpgroups) / sharing) * sharing
            if blocks * pieces * splits <= multiprocessors:
                found.setdefault(warpgroups * tokens / splits, Tile(warpgroups, tokens, sharing, splits))
    return found[min(found)] if found else None


def _rounded(num_tokens: int) -> int:
    step = 16 if num_tokens <= 128 else 8  # coarser where tokens cost little: each is another kernel to compile
    return math.ceil(num_tokens / step) * step


def fits(weight: Tensor) -> bool:
    """Whether tensor maps can describe units of it."""
    rows, columns = weight.shape
    return rows % UNIT == 0 and columns % 8 == 0 and weight.is_contiguous()


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
