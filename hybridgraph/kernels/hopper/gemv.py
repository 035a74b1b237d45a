"""Builds and launches ``gemv.cu``: one row times a packed weight matrix, on Hopper."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from hybridgraph.kernels.heuristics import PACKED_ROW, PackedRow
from hybridgraph.kernels.hopper import nvrtc
from hybridgraph.kernels.hopper.nvrtc import Launch, Program, multiprocessors
from hybridgraph.kernels.packed import STEP, TILE_BYTES, PackedMatrix

LEAST_STAGES = 3  # of the ring, also where a long row leaves little room


class _Arguments(ctypes.Structure):
    """``struct Arguments`` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("words", "starts", "exceptions", "row", "norm", "bias", "out")),
        ("eps", ctypes.c_float),
        ("num_rows", ctypes.c_int),
        ("num_groups", ctypes.c_int),
    )


@dataclass(frozen=True)
class Gemv:
    """What makes one kernel of ``gemv.cu``."""

    columns: int
    swiglu: bool = False
    norm: bool = False
    bias: bool = False
    add: bool = False
    exceptions: bool = False
    tuned: PackedRow = PACKED_ROW

    @property
    def row_bytes(self) -> int:
        """Shared memory that the row takes: rounded to float16 and, where it was normed, what rounding left."""
        return math.ceil(self.columns / STEP) * (256 if self.norm else 128)

    @property
    def stages(self) -> int:
        return max(LEAST_STAGES, (self.tuned.shared_bytes - self.row_bytes) // self.stage_bytes)

    @property
    def stage_bytes(self) -> int:
        return self.tuned.warps * TILE_BYTES

    @property
    def shared_bytes(self) -> int:
        """At least what is tuned, also where less would do: it keeps a second block away."""
        return max(self.tuned.shared_bytes, self.stages * self.stage_bytes + self.row_bytes)

    def __call__(
        self,
        row: Tensor,
        matrix: PackedMatrix,
        out: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        bias: Tensor | None = None,
        overlap: bool,
    ) -> None:
        """``row`` [1, k] times ``matrix`` [m, k] transposed, to ``out`` [1, m]; of gate and up to [1, m / 2].

        Launches on the current stream, ``overlap``: before the kernel in front has ended. Raises RuntimeError.
        """
        groups = matrix.words.shape[0]
        tensors = (matrix.words, matrix.starts, matrix.exceptions, row, norm, bias, out)
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        how = Launch(
            grid=(min(groups, multiprocessors(row.device)), 1),
            threads=32 * (self.tuned.warps + 1),
            shared_bytes=self.shared_bytes,
            overlap=overlap,
        )
        arguments = _Arguments(*pointers, eps, out.shape[1], groups)
        nvrtc.launch(program_of(self), how, row.device, (arguments, None))


def gemv_of(matrix: PackedMatrix, *, norm: bool = False, bias: bool = False, add: bool = False) -> Gemv:
    """The kernel for ``matrix``: with SwiGLU where it is merged of gate and up."""
    return Gemv(
        columns=matrix.shape[1],
        swiglu=matrix.merged,
        norm=norm,
        bias=bias,
        add=add,
        exceptions=matrix.num_exceptions > 0,
    )


@cache
def program_of(gemv: Gemv) -> Program:
    """``gemv.cu`` for one shape."""
    values = {
        "ELEMENT": "f16",
        "EPILOGUE": "store_swiglu" if gemv.swiglu else "store_rows",
        "COLUMNS": gemv.columns,
        "WARPS": gemv.tuned.warps,
        "STAGES": gemv.stages,
        "NORM": int(gemv.norm),
        "BIAS": int(gemv.bias),
        "ADD": int(gemv.add),
        "EXCEPTIONS": int(gemv.exceptions),
    }
    return Program("gemv.cu", "\n".join(f"#define {name} {value}" for name, value in values.items()), "gemv")
