"""Which kernels a device runs."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from hybridgraph.kernels.heuristics import limits_on
from hybridgraph.kernels.protocol import Kernels


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels:
    """Those that were measured to be fastest: plain PyTorch's where there is no GPU, and in float32.

    Triton's on a CUDA device in half precision; on Hopper with custom GEMMs, where what compiles them is installed
    (CUDA 13 builds of torch bring it).
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        from hybridgraph.kernels.reference import ReferenceKernels

        return ReferenceKernels()
    if torch.cuda.get_device_capability(device) == (9, 0) and find_spec("cuda") and find_spec("cuda.bindings"):
        from hybridgraph.kernels.hopper.kernels import HopperKernels

        return HopperKernels(limits_on(torch.cuda.get_device_name(device)))
    from hybridgraph.kernels.portable import TritonKernels

    return TritonKernels()
