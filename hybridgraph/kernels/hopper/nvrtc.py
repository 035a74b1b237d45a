"""CUDA C++ at run time: sources of this directory compiled by NVRTC, kept in Triton's cache on disk, and launched.

torch's CUDA builds bring NVRTC. It compiles for one shape at a time, in 0.1 to 0.5 s; what a source leaves open, its
prelude defines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

ARCHITECTURE = "sm_90a"
OPTIONS = (f"--gpu-architecture={ARCHITECTURE}", "--std=c++17")
HEADERS = ("ptx.cuh", "packed.cuh")
DIRECTORY = Path(__file__).parent


@dataclass(frozen=True)
class Program:
    """A source of this directory, and the lines before it that make it one kernel: ``kernel``."""

    source: str
    prelude: str
    kernel: str

    @property
    def text(self) -> str:
        return f'{self.prelude}\n#line 1 "{self.source}"\n{_read(self.source)}'

    @property
    def key(self) -> str:
        """Changes with whatever the machine code hangs on."""
        from cuda.bindings import nvrtc

        headers = [_read(header) for header in HEADERS]
        return sha256("\n".join([self.text, *headers, *OPTIONS, str(nvrtc.nvrtcVersion())]).encode()).hexdigest()


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: blocks, threads of each, bytes of shared memory, blocks of a cluster."""

    grid: tuple[int, int]
    threads: int
    shared_bytes: int
    cluster: int = 1
    overlap: bool = False  # before the kernel in front has ended


def compile_program(program: Program) -> bytes:
    """The machine code; raises RuntimeError with the compiler's log, also where registers ran out.

    Such a kernel would run, but the tensor cores' instructions one after another: several times as long.
    """
    from cuda.bindings import nvrtc

    texts, names = zip(*((_read(header).encode(), header.encode()) for header in HEADERS), strict=True)
    source = (program.text.encode(), program.source.encode())
    (handle,) = check(nvrtc.nvrtcCreateProgram(*source, len(HEADERS), texts, names))
    try:
        failed = int(nvrtc.nvrtcCompileProgram(handle, len(OPTIONS), [option.encode() for option in OPTIONS])[0]) != 0
        log = _filled(handle, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode()
        if failed or "wgmma.mma_async instructions are serialized" in log:
            raise RuntimeError(f"{program.source}: {log}")
        return _filled(handle, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        check(nvrtc.nvrtcDestroyProgram(handle))


def cached(program: Program) -> bytes:
    """The machine code, compiled where it is not on disk yet; raises RuntimeError as ``compile_program`` does."""
    from triton.runtime.cache import get_cache_manager

    manager = get_cache_manager(program.key)
    if found := manager.get_file("kernel.cubin"):
        return Path(found).read_bytes()
    code = compile_program(program)
    manager.put(code, "kernel.cubin", binary=True)
    return code


def compile_together(programs: Iterable[Program]) -> None:
    """Compile what is not on disk yet, on every core; raises RuntimeError for what does not compile."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for compiling in [threads.submit(cached, program) for program in set(programs)]:
            compiling.result()


@cache
def kernel_of(program: Program, shared_bytes: int, device: int) -> Any:
    """The kernel, loaded onto ``device`` with leave to use ``shared_bytes`` of shared memory."""
    from cuda.bindings import driver

    (library,) = check(driver.cuLibraryLoadData(cached(program), [], [], 0, [], [], 0))
    (kernel,) = check(driver.cuLibraryGetKernel(library, program.kernel.encode()))
    (handle,) = check(driver.cuDeviceGet(device))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    check(driver.cuKernelSetAttribute(attribute, shared_bytes, kernel, handle))
    return check(driver.cuKernelGetFunction(kernel))[0]


def launch(program: Program, how: Launch, device: torch.device, *arguments: tuple[Any, Any]) -> None:
    """Launch on the current stream of ``device``; raises RuntimeError.

    ``arguments``: each with its ctypes type, or None beside a struct of the bindings.
    """
    from cuda.bindings import driver

    config = driver.CUlaunchConfig()
    (config.gridDimX, config.gridDimY), config.gridDimZ = how.grid, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = how.threads, 1, 1
    config.sharedMemBytes = how.shared_bytes
    config.hStream = torch.cuda.current_stream(device).cuda_stream
    config.attrs = _attributes(how.cluster, how.overlap)
    config.numAttrs = len(config.attrs)
    kernel = kernel_of(program, how.shared_bytes, device.index)
    check(driver.cuLaunchKernelEx(config, kernel, tuple(zip(*arguments, strict=True)), 0))


def check(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of the bindings answered behind its error code; raises RuntimeError for any but success."""
    error, *values = answer
    if int(error) != 0:
        raise RuntimeError(f"CUDA: {error.name}")
    return tuple(values)


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _read(name: str) -> str:
    return (DIRECTORY / name).read_text()


def _filled(handle: Any, size_of: Callable[[Any], Any], fill: Callable[..., Any]) -> bytes:
    (size,) = check(size_of(handle))
    buffer = bytearray(size)  # never bytes: NVRTC writes into it, and Python shares those of length 1
    check(fill(handle, buffer))
    return bytes(buffer)


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
