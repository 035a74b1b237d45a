"""The fused forward: the same weights and the same tokens in fewer and larger kernels, ready to be captured.

What differs from the module's own forward: query, key and value projections are one GEMM, gate and
up another; norms, rotation with the cache write, and SwiGLU are one kernel each; attention needs no mask,
because causality alone hides padding on the right; of the last layer only keys and values are computed
for every position, the rest for the last one; and a decode step reads the cache up to its position only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybridgraph.engine.compilers import require_triton_compiles
from hybridgraph.engine.forward.protocol import KVCache
from hybridgraph.engine.forward.weights import CannotPack, LayerWeights, merge_weights, pack_weights, why_not_packed
from hybridgraph.errors import UserError
from hybridgraph.kernels.packed import PACKED_BITS
from hybridgraph.kernels.protocol import Kernels, Slots
from hybridgraph.kernels.select import kernels_for


@dataclass(frozen=True)
class FusedCache(KVCache):
    """The static cache, and the rotation of each of its positions."""

    cos: Tensor  # float32 [positions, head_dim / 2]
    sin: Tensor  # float32 [positions, head_dim / 2]

    def slots(self, layer: int) -> Slots:
        return Slots(self.keys[layer], self.values[layer], self.cos, self.sin)


class FusedForward:
    """Implements Forward for the Llama family: Llama, Mistral, Qwen2, Qwen3 and what is built like them.

    Merges ``model``'s projections in place (the module keeps working); raises UserError for an
    architecture that it does not cover.
    """

    supports_chunks = True
    weight_bits: int | None = None

    def __init__(self, model: PreTrainedModel, kernels: Kernels | None = None, *, weights: str = "plain") -> None:
        """``weights``: as the setting of that name. ``packed`` raises CannotPack where they cannot be."""
        self._weights = merge_weights(model)
        self._heads = self._weights.heads
        like = self._weights.embedding
        self._kernels = kernels or kernels_for(like.device, like.dtype)
        self.why_plain = self._why_plain(weights)
        if self.why_plain is None:
            self._weights = pack_weights(self._weights)
            self.weight_bits = PACKED_BITS
        elif weights == "packed":
            raise CannotPack(self.why_plain)
        self.kernels = self._kernels.name
        if like.is_cuda and self.kernels != "torch":
            require_triton_compiles("the fused forward")
        self.reads_masked = self._kernels.reads_masked

    def _why_plain(self, asked: str) -> str | None:
        """Why the weights stay as they are, or None where they are to be packed."""
        if asked == "plain":
            return "they were asked for"
        if not self._kernels.reads_packed:
            return f"the {self._kernels.name} kernels do not read packed weights (those for Hopper GPUs do)"
        return why_not_packed(self._weights)

    def prepare(self, lengths: Sequence[int]) -> None:
        layer = self._weights.layers[0]
        self._kernels.prepare(lengths, layer.qkv, layer.gate_up, (layer.out, layer.down))

    def allocate_cache(self, positions: int) -> FusedCache:
        weights = self._weights
        if weights.window is not None and weights.window < positions:
            raise UserError(
                f"the model attends over a window of {weights.window}, less than the {positions} positions asked for "
                "(--max-seq-len)"
            )
        shape = (len(weights.layers), self._heads.num_kv_heads, positions, self._heads.head_dim)
        like = weights.embedding
        angles = torch.arange(positions, device=like.device).float()[:, None] * weights.inv_freq
        return FusedCache(
            like.new_zeros(shape),
            like.new_zeros(shape),
            angles.cos() * weights.rope_scale,
            angles.sin() * weights.rope_scale,
        )

    def prefill(self, ids: Tensor, length: int, start: Tensor, last: Tensor, cache: FusedCache, logits: Tensor) -> None:
        weights, kernels = self._weights, self._kernels
        layers = weights.layers
        hidden, normed = kernels.embed_norm(ids, start, length, weights.embedding, layers[0].input_norm, weights.eps)
        for number, (layer, after) in enumerate(pairwise(layers)):
            normed = self._all_rows(layer, after, hidden, normed, start, cache.slots(number))
        self._store_only(layers[-1], normed, start, cache.slots(len(layers) - 1))
        row = hidden.index_select(0, last - start)
        query = self._one_row_project(layers[-1], row, self._heads.query_width)
        self._one_row(layers[-1], row, query, last, cache.slots(len(layers) - 1), store=False)
        self._project_out(row, logits)

    def decode(self, token: Tensor, position: Tensor, cache: FusedCache, logits: Tensor) -> None:
        weights = self._weights
        row = weights.embedding.index_select(0, token)
        for number, layer in enumerate(weights.layers):
            qkv = self._one_row_project(layer, row, layer.qkv.shape[0])
            self._one_row(layer, row, qkv, position, cache.slots(number), store=True)
        self._project_out(row, logits)

    def _all_rows(
        self, layer: LayerWeights, after: LayerWeights, hidden: Tensor, normed: Tensor, start: Tensor, slots: Slots
    ) -> Tensor:
        """Add ``layer`` to ``hidden``; returns it normed for the layer ``after``."""
        kernels, heads, eps = self._kernels, self._heads, self._weights.eps
        qkv = kernels.project(normed, layer.qkv, layer.qkv_bias)
        queries = kernels.rotate_store(qkv, start, heads, layer.head_norms, slots)
        attended = kernels.attend(queries, start, heads, slots)
        normed = kernels.linear_add_norm(hidden, attended, layer.out, layer.mlp_norm, eps)
        gated = kernels.linear_swiglu(normed, layer.gate_up)
        return kernels.linear_add_norm(hidden, gated, layer.down, after.input_norm, eps)

    def _store_only(self, layer: LayerWeights, normed: Tensor, start: Tensor, slots: Slots) -> None:
        """Keys and values of every position: all that later tokens need of the last layer."""
        width = self._heads.query_width
        bias = None if layer.qkv_bias is None else layer.qkv_bias[width:]
        kv = self._kernels.project(normed, layer.qkv[width:], bias)
        self._kernels.rotate_store(kv, start, self._heads, layer.head_norms, slots)

    def _one_row_project(self, layer: LayerWeights, row: Tensor, width: int) -> Tensor:
        bias = None if layer.qkv_bias is None else layer.qkv_bias[:width]
        return self._kernels.one_row_linear(row, layer.input_norm, self._weights.eps, layer.qkv[:width], bias)

    def _one_row(
        self, layer: LayerWeights, row: Tensor, qkv: Tensor, position: Tensor, slots: Slots, *, store: bool
    ) -> None:
        kernels = self._kernels
        attended = kernels.one_row_attend(qkv, position, self._heads, layer.head_norms, slots, store=store)
        kernels.one_row_add(row, attended, layer.out)
        gated = kernels.one_row_swiglu(row, layer.mlp_norm, self._weights.eps, layer.gate_up)
        kernels.one_row_add(row, gated, layer.down)

    def _project_out(self, row: Tensor, logits: Tensor) -> None:
        weights = self._weights
        self._kernels.one_row_linear(row, weights.final_norm, weights.eps, weights.head, None, out=logits[None])
