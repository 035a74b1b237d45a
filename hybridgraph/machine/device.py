"""The machine: which device a run uses, what it is, and how fast it was measured to be in this run."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hybridgraph.errors import UserError
from hybridgraph.machine.nvml import describe_gpu, number_gpus_as_nvml
from hybridgraph.machine.provenance import versions
from hybridgraph.machine.threads import WAIT_POLICY
from hybridgraph.machine.timing import DeviceTimer
from hybridgraph.roofline import Rates

SETTLE_S, SUSTAIN_S = 0.2, 0.3  # of products in a row: until clock and power have settled, then measured

PACKAGES = ("torch", "transformers", "accelerate", "triton", "numpy", "msgspec", "safetensors")


def existing_device(name: str) -> torch.device:
    """The device that ``--device name`` means on this machine; raises UserError where it does not exist."""
    number_gpus_as_nvml()  # as the engines of other environments are told which GPU is theirs
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"--device {name}: this machine has no usable NVIDIA GPU (--device cpu runs without one)")
        if device.index is not None and device.index >= count:
            raise UserError(f"--device {name}: the GPUs of this machine are cuda:0 to cuda:{count - 1}")
    return device


def device_name(device: torch.device) -> str:
    """What the processor or GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, driver and library versions, as JSON values."""
    description: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": versions(*PACKAGES),
        "torch_cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get(WAIT_POLICY),
        "cpu": {"name": _processor(), "threads": os.cpu_count(), "usable": len(os.sched_getaffinity(0))},
    }
    if device.type == "cuda":
        description["gpu"] = _describe_gpu(device)
    return description


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    uuid = f"GPU-{properties.uuid}"
    return {
        "name": properties.name,
        "uuid": uuid,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
    } | describe_gpu(uuid)


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates | None:
    """Measured memory bandwidth and matrix rates of a GPU, in about a second; None on the CPU.

    Bandwidth: a device-to-device copy of 4 GiB (less where there is no room), bytes read plus bytes written.
    Matrix rate: a product of two random 8192 × 8192 matrices (zeros would run faster than any real data).
    The best of several repetitions: a ceiling is what the device can do, not what it did on average.
    The sustained matrix rate is the average of that product behind SETTLE_S of it, without a pause.
    """
    if device.type != "cuda":
        return None
    bytes_per_s = _copy_bytes_per_s(device)
    flops_per_s, sustained_flops_per_s = _matrix_flops_per_s(device, dtype)
    torch.cuda.empty_cache()
    return Rates(bytes_per_s=bytes_per_s, flops_per_s=flops_per_s, sustained_flops_per_s=sustained_flops_per_s)


def _copy_bytes_per_s(device: torch.device) -> float:
    free_bytes, _ = torch.cuda.mem_get_info(device)
    num_bytes = min(4 << 30, free_bytes // 4)  # the model is there already
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _best_seconds(device, lambda: target.copy_(source), repeats=6)


def _matrix_flops_per_s(device: torch.device, dtype: torch.dtype, size: int = 8192) -> tuple[float, float]:
    """(in a burst, sustained)."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=out)

    best = _best_seconds(device, multiply, repeats=10)
    _seconds(device, multiply, repeats=math.ceil(SETTLE_S / best))
    sustained = _seconds(device, multiply, repeats=math.ceil(SUSTAIN_S / best))
    return 2 * size**3 / best, 2 * size**3 / sustained


def _best_seconds(device: torch.device, run: Callable[[], object], *, repeats: int) -> float:
    run()
    return min(_seconds(device, run) for _ in range(repeats))


def _seconds(device: torch.device, run: Callable[[], object], repeats: int = 1) -> float:
    """Mean device time of one of ``repeats`` runs in a row on a GPU."""
    timer = DeviceTimer(device)
    timer.start()
    for _ in range(repeats):
        run()
    timer.stop()
    elapsed_ms = timer.elapsed_ms()
    assert elapsed_ms is not None
    return elapsed_ms / 1e3 / repeats
