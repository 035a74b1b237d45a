"""The NVIDIA GPU that an engine of another environment will use, asked of the driver, without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from hybridgraph.errors import UserError
from hybridgraph.machine.nvml import number_gpus_as_nvml


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What the driver tells."""

    name: str
    uuid: str
    driver: str
    cuda: tuple[int, int]  # newest CUDA that the driver supports
    memory_bytes: int
    visible: str  # as CUDA_VISIBLE_DEVICES names it


def find_gpu(device: str, engine: str) -> Gpu:
    """The GPU that ``--device`` means; raises UserError where there is none or its driver does not answer."""
    if device == "cpu":
        raise UserError(f"--device cpu: {engine} runs on NVIDIA GPUs only")
    try:
        import pynvml
    except ImportError:
        raise UserError("nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise UserError(f"{engine} needs an NVIDIA GPU, and no driver answers on this machine: {error}") from None
    try:
        return _ask(pynvml, device, engine)
    except pynvml.NVMLError as error:
        raise UserError(f"--device {device}: the NVIDIA driver refuses to describe it: {error}") from None
    finally:
        pynvml.nvmlShutdown()


def use_only(gpu: Gpu) -> None:
    """Let this process and its children see ``gpu`` alone; before any CUDA library."""
    number_gpus_as_nvml()
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu.visible


def _ask(nvml: Any, device: str, engine: str) -> Gpu:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = nvml.nvmlDeviceGetCount()
    visible = [str(i) for i in range(count)] if listed is None else [d.strip() for d in listed.split(",") if d.strip()]
    index = int(device.removeprefix("cuda:")) if device.startswith("cuda:") else 0
    if index >= len(visible):
        raise UserError(f"--device {device}: {engine} needs an NVIDIA GPU, and {len(visible)} are visible here")
    chosen = visible[index]
    by_number = chosen.isdigit()
    handle = nvml.nvmlDeviceGetHandleByIndex(int(chosen)) if by_number else nvml.nvmlDeviceGetHandleByUUID(chosen)
    cuda = nvml.nvmlSystemGetCudaDriverVersion()
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        visible=chosen,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes in older versions of the library
