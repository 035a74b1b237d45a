"""The kernels of the fused forward: one signature each, in plain PyTorch, in Triton, and for Hopper.

Rows are positions of the prompt, row-major. Activations and weights are of the model's precision, float16 or bfloat16
on a GPU, but for what is said to be otherwise; sums are float32. Matrices are [outputs, inputs], contiguous. What is
called ``one_row_*`` serves decoding and the last position of a prompt, where the work is reading weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hybridgraph.kernels.packed import PackedMatrix

Matrix = Tensor | PackedMatrix


def plain_of(matrix: Matrix) -> Tensor:
    """The matrix as float16 numbers in order; of a packed one, the copy that was kept."""
    if isinstance(matrix, Tensor):
        return matrix
    assert matrix.plain is not None, "these kernels read plain matrices"
    return matrix.plain


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The attention's dimensions, and what is applied to queries and keys before their rotation."""

    num_heads: int
    num_kv_heads: int  # divides ``num_heads``
    head_dim: int
    scale: float  # of the scores, before the softmax
    eps: float

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim


@dataclass(frozen=True)
class Slots:
    """One layer's part of the static cache, and the rotation of each of its positions."""

    keys: Tensor  # [kv_heads, positions, head_dim]
    values: Tensor  # [kv_heads, positions, head_dim]
    cos: Tensor  # float32 [positions, head_dim / 2]
    sin: Tensor  # float32 [positions, head_dim / 2]


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorm weights [head_dim] of each query and key head; None in architectures without them."""

    query: Tensor | None = None
    key: Tensor | None = None


class Kernels(Protocol):
    """No kernel synchronizes, reads a device value on the host, or keeps state: a capture of any serves any values.

    All launch on the current stream of their tensors' device and return before they have run. ``start`` and
    ``position`` are int64 [1] on the device.
    """

    @property
    def name(self) -> str:
        """What results call them."""
        ...

    @property
    def reads_masked(self) -> bool:
        """Whether attention reads slots behind the position, and multiplies them by zero: NaN there spoils it."""
        ...

    @property
    def reads_packed(self) -> bool:
        """Whether packed matrices make them quicker. They take such that have no plain copy only where this is so."""
        ...

    def prepare(self, lengths: Sequence[int], qkv: Matrix, gate_up: Matrix, adding: Sequence[Matrix]) -> None:
        """Compile at once what prompts of ``lengths`` would have compiled one by one; raise RuntimeError if that fails.

        For ``project`` with weights like ``qkv``, ``linear_swiglu`` with weights like ``gate_up``, and
        ``linear_add_norm`` with weights like ``adding``.
        """
        ...

    def embed_norm(
        self, ids: Tensor, start: Tensor, length: int, table: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Look up ``ids[start : start + length]``, int64, in ``table`` [vocab, h]; norm by ``weight`` [h].

        Returns hidden [length, h] and its RMSNorm [length, h]. An id outside the table is undefined.
        """
        ...

    def linear_swiglu(self, rows: Tensor, gate_up: Matrix) -> Tensor:
        """Multiply [n, k] by gate, then up, [2 * i, k]; return silu(gate) * up, [n, i]."""
        ...

    def linear_add_norm(self, hidden: Tensor, rows: Tensor, weight: Matrix, norm: Tensor, eps: float) -> Tensor:
        """Add [n, k] times ``weight`` [m, k] to ``hidden`` [n, m] in place; return its RMSNorm by ``norm`` [m]."""
        ...

    def project(self, rows: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        """Multiply [n, k] by ``weight`` [m, k], plus ``bias`` [m]: partial sums [splits, n, m], to be added up."""
        ...

    def rotate_store(self, qkv: Tensor, start: Tensor, heads: Heads, norms: HeadNorms, slots: Slots) -> Tensor:
        """Add up the partial sums ``qkv`` [splits, n, (queries + 2 * keys) * dim] of a prompt's rows, and rotate.

        The first row is at position ``start``. Rotated keys go to ``slots.keys``, values to ``slots.values``. ``qkv``
        may lack the queries. Returns [n, >= queries * dim]: first the rotated queries, on the storage of ``qkv``.
        """
        ...

    def attend(self, queries: Tensor, start: Tensor, heads: Heads, slots: Slots) -> Tensor:
        """Attend causally: rotated queries [n, >= queries * dim], the i-th over slots 0 … start + i.

        Returns [n, queries * dim]. Softmax and its sums are float32.
        """
        ...

    def one_row_linear(
        self, hidden: Tensor, norm: Tensor, eps: float, weight: Matrix, bias: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        """Norm ``hidden`` [1, h] by ``norm`` [h], multiply by ``weight`` [m, h], add ``bias`` [m]: [1, m], ``out``."""
        ...

    def one_row_add(self, hidden: Tensor, row: Tensor, weight: Matrix) -> None:
        """Add ``row`` [1, k] times ``weight`` [m, k] to ``hidden`` [1, m] in place."""
        ...

    def one_row_swiglu(self, hidden: Tensor, norm: Tensor, eps: float, gate_up: Matrix) -> Tensor:
        """Norm ``hidden`` [1, h] by ``norm`` [h], multiply by gate, then up, [2 * i, h]; silu(gate) * up, [1, i]."""
        ...

    def one_row_attend(
        self, qkv: Tensor, position: Tensor, heads: Heads, norms: HeadNorms, slots: Slots, *, store: bool
    ) -> Tensor:
        """Attend from one unrotated query over slots 0 … position: [1, queries * dim].

        ``store``: ``qkv`` [1, (queries + 2 * keys) * dim] also holds this position's key and value, which go
        into the slots first; otherwise it holds the query only and the slots are complete.
        """
        ...
