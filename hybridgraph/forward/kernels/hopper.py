"""The fused forward's kernels on Hopper: Triton's, with all that lies between two attentions in one launch of its own.

One launch works on a prompt as long as its products divide well among the chip's multiprocessors; other lengths, and
shapes that it does not cover, are left to Triton's kernels and cuBLAS.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hybridgraph.forward.kernels import AttentionInput, LayerWeights
from hybridgraph.forward.kernels.layer import (
    BLOCK_K,
    NUM_ARRIVALS,
    UNIT,
    WARPGROUPS,
    Layer,
    Pairing,
    Rotation,
    Shape,
    blocks_of,
    halves,
    in_order,
    launch,
    max_pairs,
    product,
)
from hybridgraph.forward.kernels.triton import TritonKernels

MOST_TOKENS = 200  # of one piece of a prompt: a worker's sums must fit its registers, beside its addresses
MOST_PIECES = 2  # up to which one launch was faster (README, The fused forward)
LEAST_USE = 0.75  # of the multiprocessors, by gate and up, where one round does not do


class HopperKernels(TritonKernels):
    """Implements Kernels in float16 and bfloat16 on a device of compute capability 9.0."""

    name = "hopper"
    exclusive = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._pairs = torch.cuda.get_device_properties(device).multi_processor_count // 2
        self._arrivals = torch.zeros(NUM_ARRIVALS, dtype=torch.int32, device=device)

    def linear_rotate(self, rows: Tensor, to: AttentionInput) -> Tensor:
        shape = self._shape(rows, to)
        if shape is None:
            return super().linear_rotate(rows, to)
        layer = Layer(num_tokens=rows.shape[0])
        queries = _project(layer, shape, rows, to)
        launch(layer, shape, self._device, overlap=self._overlap)
        return queries

    def between_attentions(self, hidden: Tensor, attended: Tensor, layer: LayerWeights, to: AttentionInput) -> Tensor:
        shape = self._shape(hidden, to)
        if shape is None or not covers_layer(layer, shape.pieces(hidden.shape[0]), self._pairs):
            return super().between_attentions(hidden, attended, layer, to)
        num_tokens, width = hidden.shape
        inner = layer.down.shape[1]
        normed, gated = torch.empty_like(hidden), hidden.new_empty(num_tokens, inner)
        partial = torch.empty(shape.splits, num_tokens, width, dtype=torch.float32, device=hidden.device)
        whole = Layer(
            out=product(shape, attended, layer.out, in_order(layer.out), splits=shape.splits),
            gate_up=product(shape, normed, layer.gate_up, halves(layer.gate_up)),
            down=product(shape, gated, layer.down, in_order(layer.down), splits=shape.splits),
            hidden=hidden.data_ptr(),
            normed=normed.data_ptr(),
            gated=gated.data_ptr(),
            partial=partial.data_ptr(),
            mlp_norm=layer.mlp_norm.data_ptr(),
            input_norm=to.norm.data_ptr(),
            arrivals=self._arrivals.data_ptr(),
            inner=inner,
            num_tokens=num_tokens,
            eps=to.eps,
        )
        queries = _project(whole, shape, normed, to)
        launch(whole, shape, self._device, overlap=self._overlap)
        return queries

    def _shape(self, rows: Tensor, to: AttentionInput) -> Shape | None:
        num_tokens, width = rows.shape
        shape = shape_for(num_tokens, width, rows.dtype, self._pairs)
        if shape is None or not covers_projection(to):
            return None
        tasks = product(shape, rows, to.projection.weight, _heads_of(to), exchange=shape.exchange).tasks
        return shape if tasks <= max_pairs(shape, self._device) else None


def shape_for(num_tokens: int, width: int, dtype: torch.dtype, pairs: int) -> Shape | None:
    """What a launch for rows [num_tokens, width] is compiled for; None where the prompt is too long for one."""
    pieces = math.ceil(num_tokens / MOST_TOKENS)
    if pieces > MOST_PIECES:
        return None
    step = 16 if num_tokens <= 128 else 8  # coarser where tokens cost little: each is another kernel to compile
    tokens = math.ceil(num_tokens / pieces / step) * step
    row_tasks = math.ceil(math.ceil(width / UNIT / WARPGROUPS) / 2)
    splits = max(1, min(pairs // (row_tasks * pieces), width // BLOCK_K // 2))
    return Shape(tokens, width, splits, pieces == 1, dtype)


def covers_projection(to: AttentionInput) -> bool:
    return to.projection.norms.key is None and to.heads.dim % UNIT == 0 and _fits(to.projection.weight)


def covers_layer(layer: LayerWeights, pieces: int, pairs: int) -> bool:
    if not all(_fits(weight) for weight in (layer.out, layer.gate_up, layer.down)):
        return False
    rounds = math.ceil(math.ceil(blocks_of(layer.gate_up) / 2) * pieces / pairs)
    use = layer.gate_up.shape[0] / UNIT * pieces / (rounds * pairs * 2 * WARPGROUPS)
    return rounds == 1 or use >= LEAST_USE


def _fits(weight: Tensor) -> bool:
    """Whether tensor maps can describe units of it."""
    return weight.shape[0] % UNIT == 0 and weight.shape[1] % 8 == 0 and weight.is_contiguous()


def _heads_of(to: AttentionInput) -> Pairing:
    return Pairing(to.heads.dim // 2, to.heads.dim)


def _project(layer: Layer, shape: Shape, rows: Tensor, to: AttentionInput) -> Tensor:
    """Put the projection of ``rows`` into ``layer``; returns the queries that it will write."""
    projection, heads, slots = to.projection, to.heads, to.slots
    queries = rows.new_empty(rows.shape[0], projection.num_queries * heads.dim)
    layer.projection = product(shape, rows, projection.weight, _heads_of(to), exchange=shape.exchange)
    bias = projection.bias
    layer.rotation = Rotation(
        *(tensor.data_ptr() for tensor in (queries, slots.keys, slots.values, slots.cos, slots.sin)),
        0 if bias is None else bias.data_ptr(),
        to.start.data_ptr(),
        slots.keys.stride(0),
        projection.num_queries,
        heads.keys,
        heads.dim,
    )
    return queries
