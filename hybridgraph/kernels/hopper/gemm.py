"""Builds and launches ``gemm.cu``: a weight matrix times the rows of a prompt, on Hopper."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from hybridgraph.kernels.heuristics import COARSE_TOKENS, MAX_STAGES, MOST_ACROSS, SHARING_TOKENS
from hybridgraph.kernels.hopper import nvrtc
from hybridgraph.kernels.hopper.nvrtc import Launch, Program, check
from hybridgraph.kernels.packed import GROUP, TILE_BYTES
from hybridgraph.kernels.protocol import Matrix

Epilogue = Literal["store_swiglu", "store_partial"]

UNIT = 64  # weight rows of one warpgroup
BLOCK_K = 64  # columns of one stage
RING_BYTES = 224 * 1024  # of the 227 KiB that a block may have; the rest is its alignment and the barriers'
ELEMENTS = {torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Tile:
    """What one block computes, and how many share their loads of the tokens."""

    warpgroups: int  # units of 64 weight rows
    tokens: int  # a multiple of 8; all of a prompt's
    cluster: int  # divides the blocks of a split
    packed: bool = False  # the weights
    exceptions: bool = False  # are among them

    @property
    def box_tokens(self) -> int:
        """Tokens that one block of a cluster loads for all of its blocks."""
        return math.ceil(self.tokens / 8 / self.cluster) * 8

    @property
    def stage_bytes(self) -> int:
        unit_bytes = UNIT // GROUP * TILE_BYTES if self.packed else UNIT * BLOCK_K * 2
        return self.warpgroups * unit_bytes + self.cluster * self.box_tokens * BLOCK_K * 2

    @property
    def stages(self) -> int:
        return min(MAX_STAGES, RING_BYTES // self.stage_bytes)

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.stage_bytes + 1024


def tile_for(num_tokens: int, warpgroups: int, *, packed: bool = False, exceptions: bool = False) -> Tile:
    """The tile of blocks of ``warpgroups`` that compute all of ``num_tokens``."""
    step = 16 if num_tokens <= COARSE_TOKENS else 8
    tokens = math.ceil(num_tokens / step) * step
    return Tile(warpgroups, tokens, 2 if tokens >= SHARING_TOKENS else 1, packed, exceptions)


@dataclass(frozen=True)
class Gemm:
    """One GEMM's launch: ``rows`` [n, k] times ``weight`` [m, k] transposed, and what follows it.

    ``store_swiglu``: ``weight`` is gate, then up; out [n, m / 2] is silu(gate) * up.
    ``store_partial``: out [splits, n, m], to be summed by whoever reads it.
    """

    epilogue: Epilogue
    tile: Tile
    splits: int = 1

    def __call__(self, rows: Tensor, weight: Matrix, out: Tensor, *, overlap: bool) -> None:
        """Launch on the current stream, ``overlap``: before the kernel in front has ended. Raises RuntimeError."""
        tile = self.tile
        num_tokens, columns = rows.shape
        blocks = math.ceil(math.ceil(weight.shape[0] / UNIT) / tile.warpgroups)
        box = (BLOCK_K, tile.box_tokens)
        arguments = (
            (self._units_of(weight), None),
            (_tensor_map(rows.data_ptr(), rows.dtype, (columns, num_tokens), (rows.stride(0),), box), None),
            (out.data_ptr(), ctypes.c_void_p),
            (num_tokens, ctypes.c_int),
            (out.shape[-1], ctypes.c_int),
            (math.ceil(columns / BLOCK_K), ctypes.c_int),
        )
        how = Launch(
            grid=(math.ceil(blocks / tile.cluster) * tile.cluster, self.splits),
            threads=128 * (tile.warpgroups + 1),
            shared_bytes=tile.shared_bytes,
            cluster=tile.cluster,
            overlap=overlap,
        )
        nvrtc.launch(program_of(self.epilogue, tile, rows.dtype), how, rows.device, *arguments)

    def _units_of(self, weight: Matrix) -> Any:
        """``struct PlainUnits`` or ``PackedUnits`` of the source."""
        if isinstance(weight, Tensor):
            return _weight_map(weight.data_ptr(), weight.shape, weight.dtype, self.epilogue == "store_swiglu")
        groups, steps = weight.words.shape[:2]
        pointers = (tensor.data_ptr() for tensor in (weight.words, weight.starts, weight.exceptions))
        return _PackedUnits(*pointers, steps, groups * GROUP // UNIT)


class _PackedUnits(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("words", "starts", "exceptions")),
        ("steps", ctypes.c_int),
        ("units", ctypes.c_int),
    )


@cache
def program_of(epilogue: Epilogue, tile: Tile, dtype: torch.dtype) -> Program:
    """``gemm.cu`` for one shape."""
    sizes = {
        "EPILOGUE": epilogue,
        "ELEMENT": ELEMENTS[dtype],
        "TOKENS": tile.tokens,
        "ACROSS": _across(tile.tokens),
        "PACKED": str(tile.packed).lower(),
        "EXCEPTIONS": str(tile.exceptions).lower(),
        "WARPGROUPS": tile.warpgroups,
        "STAGES": tile.stages,
        "CLUSTER": tile.cluster,
        "BLOCK_K": BLOCK_K,
        "BOX_TOKENS": tile.box_tokens,
        "STAGE_BYTES": tile.stage_bytes,
    }
    defined = "\n".join(f"#define {name} {value}" for name, value in sizes.items())
    counts = {min(_across(tile.tokens), tile.tokens - first) for first in range(0, tile.tokens, _across(tile.tokens))}
    instructions = "\n".join(_wgmma(count, tile.packed) for count in sorted(counts))
    return Program("gemm.cu", f'{defined}\n#include "ptx.cuh"\n{instructions}', "gemm")


def _across(tokens: int) -> int:
    """Tokens of one wgmma, of as few of nearly the same size as can be."""
    return math.ceil(tokens / 8 / math.ceil(tokens / MOST_ACROSS)) * 8


def _wgmma(count: int, packed: bool) -> str:
    """The instruction for ``count`` tokens, of which a thread holds ``count / 2`` sums: its places and operands."""
    sums, fragment = count // 2, 4 if packed else 1
    places = [f"%{i}" for i in range(sums + fragment + 2)]
    operands = ", ".join(f'"+f"(sums[{i}])' for i in range(sums))
    listed = (", ".join(places[:sums]), ", ".join(places[sums:-2]), places[-2], places[-1])
    texts = ", ".join(f'"{text}"' for text in listed)
    return f"{'WGMMA_FRAGMENT' if packed else 'WGMMA'}({count}, {texts}, {operands})"


@lru_cache(maxsize=1024)
def _weight_map(address: int, shape: Sequence[int], dtype: torch.dtype, interleaved: bool) -> Any:
    """Units of 64 rows of a matrix: 4 times 8 pairs, the first of each and then the second.

    A pair is two neighbours, or ``interleaved`` a row of each half.
    """
    rows, columns = shape
    next_pair, within_pair, next_pairs = (1, rows // 2, 8) if interleaved else (2, 1, 16)
    return _tensor_map(
        address,
        dtype,
        sizes=(columns, 8, 2, rows // 16),
        strides=(next_pair * columns, within_pair * columns, next_pairs * columns),
        box=(BLOCK_K, 8, 2, 4),
    )


def _tensor_map(
    address: int, dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]
) -> Any:
    """``sizes``, ``strides`` (of all dimensions but the innermost) and ``box`` in elements, the innermost first."""
    from cuda.bindings import driver

    types = driver.CUtensorMapDataType
    half = types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    (found,) = check(
        driver.cuTensorMapEncodeTiled(
            half if dtype == torch.float16 else types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            len(sizes),
            address,
            [driver.cuuint64_t(size) for size in sizes],
            [driver.cuuint64_t(stride * dtype.itemsize) for stride in strides],
            [driver.cuuint32_t(size) for size in box],
            [driver.cuuint32_t(1)] * len(sizes),
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    return found
