"""Builds and launches ``gemm.cu``: a weight matrix times the rows of a prompt, on Hopper.

NVRTC, which torch's CUDA builds bring, compiles it for one shape at a time, in 0.1 to 0.5 s; Triton's cache
on disk keeps what it made.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Epilogue = Literal["store_swiglu", "store_partial"]

SOURCE = Path(__file__).with_name("gemm.cu")
ARCHITECTURE = "sm_90a"
UNIT = 64  # weight rows of one warpgroup
BLOCK_K = 64  # columns of one stage
RING_BYTES = 224 * 1024  # of the 227 KiB that a block may have; the rest is its alignment and the barriers'
MAX_STAGES = 12
MOST_ACROSS = 200  # tokens of one wgmma: a thread's sums must fit the registers that it starts with
_ARGUMENT_TYPES = (None, None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int)


@dataclass(frozen=True)
class Tile:
    """What one block computes, and how many share their loads of the tokens."""

    warpgroups: int  # units of 64 weight rows
    tokens: int  # a multiple of 8; all of a prompt's
    cluster: int  # divides the blocks of a split

    @property
    def box_tokens(self) -> int:
        """Tokens that one block of a cluster loads for all of its blocks."""
        return math.ceil(self.tokens / 8 / self.cluster) * 8

    @property
    def stage_bytes(self) -> int:
        return (self.warpgroups * UNIT + self.cluster * self.box_tokens) * BLOCK_K * 2

    @property
    def stages(self) -> int:
        return min(MAX_STAGES, RING_BYTES // self.stage_bytes)

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.stage_bytes + 1024


@dataclass(frozen=True)
class Gemm:
    """One GEMM's launch: ``rows`` [n, k] times ``weight`` [m, k] transposed, and what follows it.

    ``store_swiglu``: ``weight`` is gate, then up; out [n, m / 2] is silu(gate) * up.
    ``store_partial``: out [splits, n, m], to be summed by whoever reads it.
    """

    epilogue: Epilogue
    tile: Tile
    splits: int = 1

    def __call__(self, rows: Tensor, weight: Tensor, out: Tensor, *, overlap: bool) -> None:
        """Launch on the current stream, ``overlap``: before the kernel in front has ended. Raises RuntimeError."""
        from cuda.bindings import driver

        tile = self.tile
        num_tokens, columns = rows.shape
        blocks = math.ceil(math.ceil(weight.shape[0] / UNIT) / tile.warpgroups)
        box = (BLOCK_K, tile.box_tokens)
        values = (
            _weight_map(weight.data_ptr(), weight.shape, weight.dtype, self.epilogue == "store_swiglu"),
            _tensor_map(rows.data_ptr(), rows.dtype, (columns, num_tokens), (rows.stride(0),), box),
            out.data_ptr(),
            num_tokens,
            out.shape[-1],
            math.ceil(columns / BLOCK_K),
        )
        config = driver.CUlaunchConfig()
        config.gridDimX = math.ceil(blocks / tile.cluster) * tile.cluster
        config.gridDimY, config.gridDimZ = self.splits, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = 128 * (tile.warpgroups + 1), 1, 1
        config.sharedMemBytes = tile.shared_bytes
        config.hStream = torch.cuda.current_stream(rows.device).cuda_stream
        config.attrs = _attributes(tile.cluster, overlap)
        config.numAttrs = len(config.attrs)
        kernel = _kernel(self.epilogue, tile, rows.dtype, rows.device.index)
        _check(driver.cuLaunchKernelEx(config, kernel, (values, _ARGUMENT_TYPES), 0))


def compile_together(gemms: Iterable[Gemm], dtype: torch.dtype) -> None:
    """Compile what is not in the cache yet, on every core."""
    kernels = {(gemm.epilogue, gemm.tile) for gemm in gemms}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for compiling in [threads.submit(_cached, epilogue, tile, dtype) for epilogue, tile in kernels]:
            compiling.result()


def compile_gemm(epilogue: Epilogue, tile: Tile, dtype: torch.dtype) -> bytes:
    """The machine code of one shape; raises RuntimeError with the compiler's log, also where registers ran out.

    Such a kernel would run, but the tensor cores' instructions one after another: several times as long.
    """
    from cuda.bindings import nvrtc

    text = _prelude(epilogue, tile, dtype) + SOURCE.read_text()
    (program,) = _check(nvrtc.nvrtcCreateProgram(text.encode(), SOURCE.name.encode(), 0, [], []))
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17"]
    failed = int(nvrtc.nvrtcCompileProgram(program, len(options), options)[0]) != 0
    log = _filled(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode()
    if failed or "wgmma.mma_async instructions are serialized" in log:
        raise RuntimeError(f"{SOURCE.name}: {log}")
    code = _filled(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    _check(nvrtc.nvrtcDestroyProgram(program))
    return code


def _filled(program: Any, size_of: Callable[[Any], Any], fill: Callable[..., Any]) -> bytes:
    (size,) = _check(size_of(program))
    buffer = bytearray(size)  # never bytes: NVRTC writes into it, and Python shares those of length 1
    _check(fill(program, buffer))
    return bytes(buffer)


def _prelude(epilogue: Epilogue, tile: Tile, dtype: torch.dtype) -> str:
    """What ``gemm.cu`` leaves open: sizes, the element type, and the one instruction that spells its shape out."""
    element = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    pieces = math.ceil(tile.tokens / MOST_ACROSS)
    across = math.ceil(tile.tokens / 8 / pieces) * 8
    multiplications = "".join(
        _multiplication(first, min(across, tile.tokens - first), element) for first in range(0, tile.tokens, across)
    )
    return f"""
#define EPILOGUE {epilogue}
#define TOKENS {tile.tokens}
#define WARPGROUPS {tile.warpgroups}
#define STAGES {tile.stages}
#define CLUSTER {tile.cluster}
#define BLOCK_K {BLOCK_K}
#define BOX_TOKENS {tile.box_tokens}
#define STAGE_BYTES {tile.stage_bytes}
__device__ __forceinline__ unsigned pack(float low, float high) {{
    unsigned packed;
    asm("cvt.rn.{element}x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}}
// sums (+)= a unit's 16 columns times the tokens' 16 columns
__device__ __forceinline__ void multiply(
    float (&sums)[{tile.tokens // 2}], unsigned long long unit, unsigned long long tokens, int accumulate) {{
    {multiplications}
}}
#line 1
"""


def _multiplication(first: int, count: int, element: str) -> str:
    """A unit times ``count`` tokens from ``first`` on, whose rows of 128 bytes a descriptor counts in steps of 16."""
    num_sums = count // 2
    registers = ", ".join(f"%{i}" for i in range(num_sums))
    sums = ", ".join(f'"+f"(sums[{first // 2 + i}])' for i in range(num_sums))
    return f"""asm volatile(
        "{{.reg .pred p; setp.ne.b32 p, %{num_sums + 2}, 0;"
        "wgmma.mma_async.sync.aligned.m64n{count}k16.f32.{element}.{element} "
        "{{{registers}}}, %{num_sums}, %{num_sums + 1}, p, 1, 1, 0, 0;}}"
        : {sums} : "l"(unit), "l"(tokens + {first * 128 // 16}), "r"(accumulate));"""


@cache
def _kernel(epilogue: Epilogue, tile: Tile, dtype: torch.dtype, device: int) -> Any:
    from cuda.bindings import driver

    code = _cached(epilogue, tile, dtype)
    (library,) = _check(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))
    (kernel,) = _check(driver.cuLibraryGetKernel(library, b"gemm"))
    (handle,) = _check(driver.cuDeviceGet(device))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _check(driver.cuKernelSetAttribute(attribute, tile.shared_bytes, kernel, handle))
    return _check(driver.cuKernelGetFunction(kernel))[0]


def _cached(epilogue: Epilogue, tile: Tile, dtype: torch.dtype) -> bytes:
    from cuda.bindings import nvrtc
    from triton.runtime.cache import get_cache_manager

    text = _prelude(epilogue, tile, dtype) + SOURCE.read_text() + ARCHITECTURE + str(nvrtc.nvrtcVersion())
    manager = get_cache_manager(sha256(text.encode()).hexdigest())
    if found := manager.get_file("gemm.cubin"):
        return Path(found).read_bytes()
    code = compile_gemm(epilogue, tile, dtype)
    manager.put(code, "gemm.cubin", binary=True)
    return code


@cache
def _attributes(cluster: int, overlap: bool) -> list[Any]:
    from cuda.bindings import driver

    ids = driver.CUlaunchAttributeID
    clustered, overlapping = driver.CUlaunchAttribute(), driver.CUlaunchAttribute()
    clustered.id = ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    clustered.value.clusterDim.x, clustered.value.clusterDim.y, clustered.value.clusterDim.z = cluster, 1, 1
    overlapping.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    overlapping.value.programmaticStreamSerializationAllowed = int(overlap)
    return [clustered, overlapping]


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
    (found,) = _check(
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


def _check(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    error, *values = answer
    if int(error) != 0:
        raise RuntimeError(f"CUDA: {error.name}")
    return tuple(values)
