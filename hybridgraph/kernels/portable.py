"""The fused forward's kernels on an NVIDIA GPU: Triton around cuBLAS's GEMMs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from hybridgraph.kernels.attention import attend_kernel, combine_kernel, one_row_attend_kernel
from hybridgraph.kernels.gemv import gemv_kernel
from hybridgraph.kernels.heuristics import Blocks
from hybridgraph.kernels.protocol import HeadNorms, Heads, Matrix, Slots, plain_of
from hybridgraph.kernels.rowwise import (
    add_norm_kernel,
    embed_norm_kernel,
    norm_kernel,
    rotate_store_kernel,
    swiglu_kernel,
)

LOG2_E = math.log2(math.e)


class TritonKernels:
    """Implements Kernels in float16 and bfloat16 on a CUDA device."""

    name = "triton"
    reads_masked = False
    reads_packed = False

    def __init__(self, blocks: Blocks | None = None, *, overlap: bool | None = None) -> None:
        """``overlap``: programmatic dependent launch, where the chip has it (None)."""
        self._blocks = blocks or Blocks()
        has_overlap = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9
        self._overlap = has_overlap if overlap is None else overlap

    def prepare(self, lengths: Sequence[int], qkv: Matrix, gate_up: Matrix, adding: Sequence[Matrix]) -> None:
        """Its kernels serve every length."""

    def embed_norm(
        self, ids: Tensor, start: Tensor, length: int, table: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        width = table.shape[1]
        hidden = table.new_empty(length, width)
        normed = torch.empty_like(hidden)
        self._launch(
            embed_norm_kernel,
            (length,),
            (ids, start, table, weight, hidden, normed, eps),
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            num_warps=self._blocks.row_warps(width),
        )
        return hidden, normed

    def norm(self, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(hidden)
        rows, width = hidden.shape
        self._launch(
            norm_kernel,
            (rows,),
            (hidden, weight, out, eps),
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            num_warps=self._blocks.row_warps(width),
        )
        return out

    def linear_swiglu(self, rows: Tensor, gate_up: Matrix) -> Tensor:
        return self.swiglu(F.linear(rows, plain_of(gate_up)))

    def linear_add_norm(self, hidden: Tensor, rows: Tensor, weight: Matrix, norm: Tensor, eps: float) -> Tensor:
        torch.addmm(hidden, rows, plain_of(weight).T, out=hidden)
        return self.norm(hidden, norm, eps)

    def add_norm(self, hidden: Tensor, partial: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``hidden`` [n, h] += the sum of ``partial`` [splits, n, h]; returns its RMSNorm."""
        out = torch.empty_like(hidden)
        splits, rows, width = partial.shape
        self._launch(
            add_norm_kernel,
            (rows,),
            (hidden, partial, weight, out, eps),
            WIDTH=width,
            SPLITS=splits,
            BLOCK=triton.next_power_of_2(width),
            num_warps=self._blocks.row_warps(width, rows),
        )
        return out

    def project(self, rows: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        return F.linear(rows, plain_of(weight), bias)[None]

    def rotate_store(self, qkv: Tensor, start: Tensor, heads: Heads, norms: HeadNorms, slots: Slots) -> Tensor:
        splits, rows, width = qkv.shape
        num_queries = width // heads.head_dim - 2 * heads.num_kv_heads
        block_rows, block_heads, warps = self._blocks.rotate(num_queries, heads.num_kv_heads, splits)
        half = heads.head_dim // 2
        query_norm, key_norm = _norms(norms, slots)
        self._launch(
            rotate_store_kernel,
            (triton.cdiv(rows, block_rows), (num_queries + 2 * heads.num_kv_heads) // block_heads),
            (
                qkv,
                start,
                slots.keys,
                slots.values,
                slots.cos,
                slots.sin,
                query_norm,
                key_norm,
                slots.keys.stride(0),
                rows,
                heads.eps,
            ),
            SPLITS=splits,
            NUM_QUERIES=num_queries,
            NUM_KEYS=heads.num_kv_heads,
            HALF=half,
            BLOCK_HALF=triton.next_power_of_2(half),
            BLOCK_ROWS=block_rows,
            BLOCK_HEADS=block_heads,
            HAS_NORM=norms.key is not None,
            num_warps=warps,
        )
        return qkv[0]

    def attend(self, queries: Tensor, start: Tensor, heads: Heads, slots: Slots) -> Tensor:
        length = queries.shape[0]
        out = queries.new_empty(length, heads.query_width)
        block = self._blocks.attend(length)
        self._launch(
            attend_kernel,
            (heads.num_heads, triton.cdiv(length, block.queries)),
            (queries, start, slots.keys, slots.values, out, length),
            query_stride=queries.stride(0),
            out_stride=out.stride(0),
            head_stride=slots.keys.stride(0),
            scale=heads.scale * LOG2_E,
            GROUP=heads.num_heads // heads.num_kv_heads,
            DIM=heads.head_dim,
            BLOCK_DIM=_block_dim(heads),
            BLOCK_M=block.queries,
            BLOCK_N=block.keys,
            num_warps=block.warps,
            num_stages=block.stages,
        )
        return out

    def swiglu(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        block = self._blocks.swiglu_columns
        grid = (rows, triton.cdiv(width, block))
        self._launch(swiglu_kernel, grid, (gate_up, out), WIDTH=width, BLOCK=block, num_warps=4)
        return out

    def one_row_linear(
        self, hidden: Tensor, norm: Tensor, eps: float, weight: Matrix, bias: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        out = hidden.new_empty(1, weight.shape[0]) if out is None else out
        self._gemv(hidden, plain_of(weight), out, norm=norm, eps=eps, bias=bias)
        return out

    def one_row_add(self, hidden: Tensor, row: Tensor, weight: Matrix) -> None:
        self._gemv(row, plain_of(weight), hidden, add=True)

    def one_row_swiglu(self, hidden: Tensor, norm: Tensor, eps: float, gate_up: Matrix) -> Tensor:
        out = hidden.new_empty(1, gate_up.shape[0] // 2)
        self._gemv(hidden, plain_of(gate_up), out, norm=norm, eps=eps, swiglu=True)
        return out

    def one_row_attend(
        self, qkv: Tensor, position: Tensor, heads: Heads, norms: HeadNorms, slots: Slots, *, store: bool
    ) -> Tensor:
        splits = self._blocks.one_row_splits(heads.num_kv_heads)
        partial = torch.empty(heads.num_heads, splits, heads.head_dim, dtype=torch.float32, device=qkv.device)
        summary = torch.empty(heads.num_heads, splits, 2, dtype=torch.float32, device=qkv.device)
        query_norm, key_norm = _norms(norms, slots)
        group = heads.num_heads // heads.num_kv_heads
        shape = {"DIM": heads.head_dim, "BLOCK_DIM": _block_dim(heads), "SPLITS": splits}
        self._launch(
            one_row_attend_kernel,
            (heads.num_kv_heads, splits),
            (qkv, position, slots.keys, slots.values, slots.cos, slots.sin, query_norm, key_norm, partial, summary),
            head_stride=slots.keys.stride(0),
            eps=heads.eps,
            scale=heads.scale * LOG2_E,
            GROUP=group,
            BLOCK_GROUP=max(16, triton.next_power_of_2(group)),
            BLOCK_N=64,
            HAS_NORM=norms.key is not None,
            STORE=store,
            num_warps=4,
            num_stages=2,
            **shape,
        )
        out = qkv.new_empty(1, heads.query_width)
        self._launch(combine_kernel, (heads.num_heads,), (partial, summary, out), num_warps=4, **shape)
        return out

    def _gemv(
        self,
        row: Tensor,
        weight: Tensor,
        out: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        bias: Tensor | None = None,
        swiglu: bool = False,
        add: bool = False,
    ) -> None:
        width = weight.shape[1]
        num_rows = out.shape[1]
        block = self._blocks.gemv(num_rows=num_rows, width=width, swiglu=swiglu)
        self._launch(
            gemv_kernel,
            (triton.cdiv(num_rows, block.rows),),
            (row, weight, weight if norm is None else norm, weight if bias is None else bias, out, eps, num_rows),
            WIDTH=width,
            NORM=norm is not None,
            BIAS=bias is not None,
            SWIGLU=swiglu,
            ADD=add,
            BLOCK_N=block.rows,
            BLOCK_K=block.columns,
            num_warps=block.warps,
        )

    def _launch(self, kernel: Any, grid: tuple[int, ...], tensors: tuple[Any, ...], **numbers: Any) -> None:
        if self._overlap:
            numbers["launch_pdl"] = True
        kernel[grid](*tensors, PDL=self._overlap, **numbers)


def _block_dim(heads: Heads) -> int:
    return max(16, triton.next_power_of_2(heads.head_dim))


def _norms(norms: HeadNorms, slots: Slots) -> tuple[Tensor, Tensor]:
    """The head norms' weights; where there are none, something of that type that is not read."""
    if norms.query is None or norms.key is None:
        return slots.keys, slots.keys
    return norms.query, norms.key
