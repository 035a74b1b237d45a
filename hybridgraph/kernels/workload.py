"""Inputs to time kernels with: a model's matrices and activations, as many random sets as the cache cannot hold."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from hybridgraph.kernels.protocol import Heads, Slots
from hybridgraph.roofline import ModelShape

MOST_SETS = 64  # launches in one graph: of activations of a few rows, so many fit the cache nevertheless
STD = 0.02  # of weights

MATRICES = ("qkv", "out", "gate_up", "down", "head")


class Workload:
    """What one layer of a model of ``shape`` computes with, in random numbers of ``dtype`` on ``device``.

    ``cache_bytes``: of the device's last-level cache; sets of inputs together are at least four times as large.
    """

    def __init__(self, shape: ModelShape, dtype: torch.dtype, device: torch.device, cache_bytes: int) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self._cache_bytes = cache_bytes

    def like(self, shape: ModelShape) -> Workload:
        """The same for a model of another shape."""
        return Workload(shape, self.dtype, self.device, self._cache_bytes)

    @cached_property
    def heads(self) -> Heads:
        shape = self.shape
        return Heads(
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            scale=shape.head_dim**-0.5,
            eps=1e-5,
        )

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """[outputs, inputs] of one of MATRICES."""
        shape, queries = self.shape, self.heads.query_width
        return {
            "qkv": (queries + 2 * shape.num_kv_heads * shape.head_dim, shape.hidden_size),
            "out": (shape.hidden_size, queries),
            "gate_up": (2 * shape.intermediate_size, shape.hidden_size),
            "down": (shape.hidden_size, shape.intermediate_size),
            "head": (shape.vocab_size, shape.hidden_size),
        }[name]

    def matrices(self, name: str) -> list[Tensor]:
        """Sets of one of MATRICES, of weights as precise as those of released models."""
        return [weight.copy_(weight.bfloat16()) for weight in self.sets(*self.matrix_shape(name), scale=STD)]

    def sets(self, *size: int, scale: float = 1.0) -> list[Tensor]:
        """Random tensors of ``size``, which together are at least four times as large as the cache."""
        return [self.random(*size, scale=scale) for _ in range(self.num_sets(*size))]

    def num_sets(self, *size: int) -> int:
        num_bytes = math.prod(size) * self.dtype.itemsize
        return max(2, min(MOST_SETS, math.ceil(4 * self._cache_bytes / num_bytes)))

    def random(self, *size: int, scale: float = 1.0) -> Tensor:
        """Normally distributed numbers."""
        return torch.empty(size, dtype=self.dtype, device=self.device).normal_(0.0, scale)

    def index(self, value: int) -> Tensor:
        """int64 [1] on the device."""
        return torch.tensor([value], device=self.device)

    def slots(self, positions: int) -> Slots:
        """A layer's cache of ``positions``, full of random keys and values."""
        heads = self.heads
        keys, values = (self.random(heads.num_kv_heads, positions, heads.head_dim) for _ in range(2))
        angles = torch.rand(positions, heads.head_dim // 2, device=self.device) * 6
        return Slots(keys, values, angles.cos(), angles.sin())
