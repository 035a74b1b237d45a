"""The fused forward's kernels in plain PyTorch: what runs without a GPU and in float32, and what Triton must equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgraph.kernels.packed import PackedMatrix, unpack
from hybridgraph.kernels.protocol import HeadNorms, Heads, Matrix, Slots


class ReferenceKernels:
    """Implements Kernels; any device, any float type."""

    name = "torch"
    reads_masked = True
    reads_packed = True

    def prepare(self, lengths: Sequence[int], qkv: Matrix, gate_up: Matrix, adding: Sequence[Matrix]) -> None:
        """Nothing is compiled."""

    def embed_norm(
        self, ids: Tensor, start: Tensor, length: int, table: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        hidden = F.embedding(ids.index_select(0, _positions(start, length)), table)
        return hidden, self.norm(hidden, weight, eps)

    def norm(self, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return weight * scaled.to(hidden.dtype)

    def linear_swiglu(self, rows: Tensor, gate_up: Matrix) -> Tensor:
        gate, up = F.linear(rows, _unpacked(gate_up)).chunk(2, dim=-1)
        return F.silu(gate) * up

    def linear_add_norm(self, hidden: Tensor, rows: Tensor, weight: Matrix, norm: Tensor, eps: float) -> Tensor:
        torch.addmm(hidden, rows, _unpacked(weight).T, out=hidden)
        return self.norm(hidden, norm, eps)

    def project(self, rows: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        return F.linear(rows, _unpacked(weight), bias)[None]

    def rotate_store(self, qkv: Tensor, start: Tensor, heads: Heads, norms: HeadNorms, slots: Slots) -> Tensor:
        qkv = qkv.sum(0)
        positions = _positions(start, qkv.shape[0])
        cos, sin = slots.cos.index_select(0, positions), slots.sin.index_select(0, positions)
        queries, keys, values = _split(qkv, heads)
        queries.copy_(self._rotated(queries, norms.query, heads.eps, cos, sin))
        rotated = self._rotated(keys, norms.key, heads.eps, cos, sin)
        slots.keys.index_copy_(1, positions, rotated.transpose(0, 1))
        slots.values.index_copy_(1, positions, values.transpose(0, 1))
        return qkv

    def attend(self, queries: Tensor, start: Tensor, heads: Heads, slots: Slots) -> Tensor:
        q = queries[:, : heads.query_width].unflatten(1, (heads.num_heads, heads.head_dim)).transpose(0, 1)
        out = _attended(q, _positions(start, queries.shape[0]), heads, slots)
        return out.transpose(0, 1).reshape(queries.shape[0], heads.query_width)

    def one_row_linear(
        self, hidden: Tensor, norm: Tensor, eps: float, weight: Matrix, bias: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        row = F.linear(self.norm(hidden, norm, eps), _unpacked(weight), bias)
        return row if out is None else out.copy_(row)

    def one_row_add(self, hidden: Tensor, row: Tensor, weight: Matrix) -> None:
        torch.addmm(hidden, row, _unpacked(weight).T, out=hidden)

    def one_row_swiglu(self, hidden: Tensor, norm: Tensor, eps: float, gate_up: Matrix) -> Tensor:
        return self.linear_swiglu(self.norm(hidden, norm, eps), gate_up)

    def one_row_attend(
        self, qkv: Tensor, position: Tensor, heads: Heads, norms: HeadNorms, slots: Slots, *, store: bool
    ) -> Tensor:
        cos, sin = slots.cos.index_select(0, position), slots.sin.index_select(0, position)
        if store:
            queries, keys, values = _split(qkv, heads)
            rotated = self._rotated(keys, norms.key, heads.eps, cos, sin)
            slots.keys.index_copy_(1, position, rotated.transpose(0, 1))
            slots.values.index_copy_(1, position, values.transpose(0, 1))
        else:
            queries = qkv.unflatten(1, (heads.num_heads, heads.head_dim))
        query = self._rotated(queries, norms.query, heads.eps, cos, sin).transpose(0, 1)
        return _attended(query, position, heads, slots).reshape(1, heads.query_width)

    def _rotated(self, rows: Tensor, norm: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate [n, heads, dim] by its positions; the halves of ``dim`` hold the coordinates of the pairs."""
        if norm is not None:
            rows = self.norm(rows, norm, eps)
        first, second = rows.float().chunk(2, dim=-1)
        cos, sin = cos[:, None], sin[:, None]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(rows.dtype)


def _unpacked(weight: Matrix) -> Tensor:
    return unpack(weight) if isinstance(weight, PackedMatrix) else weight


def _positions(start: Tensor, length: int) -> Tensor:
    return start + torch.arange(length, device=start.device)


def _attended(queries: Tensor, positions: Tensor, heads: Heads, slots: Slots) -> Tensor:
    """Rotated queries [queries, n, dim], each over the slots up to its position: [queries, n, dim]."""
    visible = torch.arange(slots.keys.shape[1], device=positions.device) <= positions[:, None]
    return F.scaled_dot_product_attention(
        queries[None],
        slots.keys[None],
        slots.values[None],
        attn_mask=visible,
        scale=heads.scale,
        enable_gqa=heads.num_kv_heads != heads.num_heads,
    )[0]


def _split(qkv: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    """[n, (queries + 2 * keys) * dim] as views [n, heads, dim] of queries, keys and values."""
    by_head = qkv.unflatten(1, (-1, heads.head_dim))
    num_queries = by_head.shape[1] - 2 * heads.num_kv_heads
    return by_head.split((num_queries, heads.num_kv_heads, heads.num_kv_heads), dim=1)
