"""Builds and launches ``layer.cu``: what lies between two attentions of a prompt's forward, on Hopper.

NVRTC, which torch's CUDA builds bring, compiles it for one shape at a time, in about a second; Triton's cache
on disk keeps what it made.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("layer.cu")
ARCHITECTURE = "sm_90a"
WARPGROUPS = 3
UNIT = 64  # weight rows of one warpgroup
BLOCK_K = 64  # columns of one stage
RING_BYTES = 224 * 1024  # of the 227 KiB that a block may have; the rest is its alignment and the barriers'
MAX_STAGES = 8
MAP_BYTES = 128
NUM_ARRIVALS = 5


class Product(ctypes.Structure):
    """``Product`` of ``layer.cu``; all zero: none."""

    _fields_ = (
        ("weights", ctypes.c_ubyte * MAP_BYTES),
        ("tokens", ctypes.c_ubyte * MAP_BYTES),
        *((name, ctypes.c_int) for name in ("tasks", "pieces", "row_tasks", "steps", "units_a_part")),
        ("exchange", ctypes.c_bool),
        ("padding", ctypes.c_ubyte * 43),  # maps are aligned to 64 bytes
    )


class Rotation(ctypes.Structure):
    """``Rotation`` of ``layer.cu``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("queries", "keys", "values", "cos", "sin", "bias", "start")),
        ("head_stride", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("num_queries", "num_keys", "dim")),
    )


class Layer(ctypes.Structure):
    """``Layer`` of ``layer.cu``, the kernel's only argument."""

    _fields_ = (
        *((name, Product) for name in ("out", "gate_up", "down", "projection")),
        ("rotation", Rotation),
        *((name, ctypes.c_void_p) for name in ("hidden", "normed", "gated", "partial", "mlp_norm", "input_norm")),
        ("arrivals", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("inner", "num_tokens")),
        ("eps", ctypes.c_float),
        ("padding", ctypes.c_ubyte * 44),
    )

    def getPtr(self) -> int:
        """What cuda.bindings asks an argument for."""
        return ctypes.addressof(self)


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for."""

    tokens: int  # of a piece of the prompt: a multiple of 8
    width: int  # of the hidden state
    splits: int  # of the reductions that end in the hidden state
    exchange: bool  # whether the two blocks of a pair split the projection's reduction
    dtype: torch.dtype

    def pieces(self, num_tokens: int) -> int:
        return math.ceil(num_tokens / self.tokens)

    @property
    def half(self) -> int:
        """Tokens that one block of a pair loads."""
        return math.ceil(self.tokens / 16) * 8

    @property
    def stage_bytes(self) -> int:
        return (WARPGROUPS * UNIT + 2 * self.half) * BLOCK_K * 2

    @property
    def stages(self) -> int:
        return min(MAX_STAGES, RING_BYTES // self.stage_bytes)

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.stage_bytes + 1024


@dataclass(frozen=True)
class Pairing:
    """Which weight rows belong together: each of a part's first ones and the one ``apart`` behind it."""

    apart: int
    part: int  # rows within which that holds

    @property
    def step(self) -> int:
        """From one block of 8 rows to the next."""
        return 16 if self.apart == 8 else 8


def in_order(weight: Tensor) -> Pairing:
    return Pairing(8, weight.shape[0])


def halves(weight: Tensor) -> Pairing:
    return Pairing(weight.shape[0] // 2, weight.shape[0])


def blocks_of(weight: Tensor) -> int:
    """Thread blocks that a product takes for one piece of the prompt and one split."""
    return math.ceil(weight.shape[0] / UNIT / WARPGROUPS)


def product(
    shape: Shape, rows: Tensor, weight: Tensor, pairing: Pairing, *, splits: int = 1, exchange: bool = False
) -> Product:
    """``rows`` [n, k] times ``weight`` [m, k] transposed, the reduction in ``splits``, or in two if ``exchange``."""
    num_tokens, columns = rows.shape
    pieces = shape.pieces(num_tokens)
    row_tasks = blocks_of(weight) if exchange else math.ceil(blocks_of(weight) / 2)
    return Product(
        _bytes_of(_weight_map(weight.data_ptr(), weight.shape, weight.dtype, pairing)),
        _bytes_of(
            _tensor_map(rows.data_ptr(), rows.dtype, (columns, num_tokens), (rows.stride(0),), (BLOCK_K, shape.half))
        ),
        pieces * row_tasks * splits,
        pieces,
        row_tasks,
        math.ceil(columns / BLOCK_K / (2 if exchange else splits)),
        math.ceil(pairing.part / UNIT),
        exchange,
    )


def launch(layer: Layer, shape: Shape, device: torch.device, *, overlap: bool) -> None:
    """Launch on the current stream, ``overlap``: before the kernel in front has ended. Raises RuntimeError."""
    from cuda.bindings import driver

    kernel, config = _kernel(shape, device.index), _config(shape, overlap)
    config.gridDimX = 2 * max_pairs(shape, device)
    config.hStream = torch.cuda.current_stream(device).cuda_stream
    _check(driver.cuLaunchKernelEx(config, kernel, ((layer,), (None,)), 0))


@cache
def max_pairs(shape: Shape, device: torch.device) -> int:
    """Pairs of blocks that can run at the same time; those of one launch must."""
    from cuda.bindings import driver

    (pairs,) = _check(driver.cuOccupancyMaxActiveClusters(_kernel(shape, device.index), _config(shape, False)))
    return int(pairs)


def _config(shape: Shape, overlap: bool) -> Any:
    from cuda.bindings import driver

    ids = driver.CUlaunchAttributeID
    paired, overlapping = driver.CUlaunchAttribute(), driver.CUlaunchAttribute()
    paired.id = ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    paired.value.clusterDim.x, paired.value.clusterDim.y, paired.value.clusterDim.z = 2, 1, 1
    overlapping.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    overlapping.value.programmaticStreamSerializationAllowed = int(overlap)
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = 2, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = 128 * (WARPGROUPS + 1), 1, 1
    config.sharedMemBytes = shape.shared_bytes
    config.attrs = [paired, overlapping]
    config.numAttrs = 2
    return config


def compile_layer(shape: Shape) -> bytes:
    """The machine code of one shape; raises RuntimeError with the compiler's log."""
    from cuda.bindings import nvrtc

    text = _prelude(shape) + SOURCE.read_text()
    (program,) = _check(nvrtc.nvrtcCreateProgram(text.encode(), SOURCE.name.encode(), 0, [], []))
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17"]
    failed = int(nvrtc.nvrtcCompileProgram(program, len(options), options)[0]) != 0
    if failed:
        log = _filled(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        raise RuntimeError(f"{SOURCE.name}: {log.decode()}")
    code = _filled(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    _check(nvrtc.nvrtcDestroyProgram(program))
    return code


def _filled(program: Any, size_of: Callable[[Any], Any], fill: Callable[[Any, bytes], Any]) -> bytes:
    (size,) = _check(size_of(program))
    buffer = b" " * size
    _check(fill(program, buffer))
    return buffer


def _prelude(shape: Shape) -> str:
    """What ``layer.cu`` leaves open: sizes, the element type, and the one instruction that spells its shape out."""
    element = {torch.float16: "f16", torch.bfloat16: "bf16"}[shape.dtype]
    num_sums = shape.tokens // 2
    registers = ", ".join(f"%{i}" for i in range(num_sums))
    sums = ", ".join(f'"+f"(sums[{i}])' for i in range(num_sums))
    return f"""
#define TOKENS {shape.tokens}
#define WIDTH {shape.width}
#define SPLITS {shape.splits}
#define EXCHANGE {int(shape.exchange)}
#define WARPGROUPS {WARPGROUPS}
#define STAGES {shape.stages}
#define LAYER_BYTES {ctypes.sizeof(Layer)}
__device__ __forceinline__ unsigned pack(float low, float high) {{
    unsigned packed;
    asm("cvt.rn.{element}x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}}
__device__ __forceinline__ float2 unpack(unsigned packed) {{
    float2 both;
    asm("{{.reg .b16 low, high; mov.b32 {{low, high}}, %2; cvt.f32.{element} %0, low; cvt.f32.{element} %1, high;}}"
        : "=f"(both.x), "=f"(both.y) : "r"(packed));
    return both;
}}
// sums (+)= a unit's 16 columns times the tokens' 16 columns
__device__ __forceinline__ void multiply(
    float (&sums)[{num_sums}], unsigned long long unit, unsigned long long tokens, int accumulate) {{
    asm volatile(
        "{{.reg .pred p; setp.ne.b32 p, %{num_sums + 2}, 0;"
        "wgmma.mma_async.sync.aligned.m64n{shape.tokens}k16.f32.{element}.{element} "
        "{{{registers}}}, %{num_sums}, %{num_sums + 1}, p, 1, 1, 0, 0;}}"
        : {sums} : "l"(unit), "l"(tokens), "r"(accumulate));
}}
#line 1
"""


@cache
def _kernel(shape: Shape, device: int) -> Any:
    from cuda.bindings import driver

    code = compiled(shape)
    (library,) = _check(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))
    (kernel,) = _check(driver.cuLibraryGetKernel(library, b"layer"))
    (handle,) = _check(driver.cuDeviceGet(device))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _check(driver.cuKernelSetAttribute(attribute, shape.shared_bytes, kernel, handle))
    return _check(driver.cuKernelGetFunction(kernel))[0]


def compiled(shape: Shape) -> bytes:
    """The machine code, from the cache on disk if it is there."""
    from cuda.bindings import nvrtc
    from triton.runtime.cache import get_cache_manager

    text = _prelude(shape) + SOURCE.read_text() + ARCHITECTURE + str(nvrtc.nvrtcVersion())
    manager = get_cache_manager(sha256(text.encode()).hexdigest())
    if found := manager.get_file("layer.cubin"):
        return Path(found).read_bytes()
    code = compile_layer(shape)
    manager.put(code, "layer.cubin", binary=True)
    return code


def _bytes_of(tensor_map: Any) -> Any:
    return (ctypes.c_ubyte * MAP_BYTES).from_buffer_copy(ctypes.string_at(tensor_map.getPtr(), MAP_BYTES))


@lru_cache(maxsize=1024)
def _weight_map(address: int, shape: Sequence[int], dtype: torch.dtype, pairing: Pairing) -> Any:
    """Units of 64 rows: 4 times 8 rows and the 8 rows that belong to them."""
    rows, columns = shape
    return _tensor_map(
        address,
        dtype,
        sizes=(columns, 8, 2, pairing.part // 16, rows // pairing.part),
        strides=(columns, pairing.apart * columns, pairing.step * columns, pairing.part * columns),
        box=(BLOCK_K, 8, 2, 4, 1),
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
