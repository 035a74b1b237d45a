"""Tensors shared between processes.

On a GPU the memory is named by CUDA IPC handles; on the CPU it is moved into anonymous shared memory
whose descriptor travels with the message. That memory has no name: there is nothing that another
process could unlink or that a killed one could leave behind.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from hybridgraph.errors import UserError
from hybridgraph.serving.ipc.messages import CpuBuffer, CudaBuffer

# ids int64 [positions], last int64 [1]: input of a prefill. token int64 [1], position int64 [1]: of a
# decode step. logits [vocab] in the model's precision: output of both.
SHARED_NAMES = ("ids", "last", "token", "position", "logits")

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.int64, torch.float16, torch.bfloat16, torch.float32
)}  # fmt: skip


def export_tensor(tensor: Tensor, descriptors: list[int]) -> CudaBuffer | CpuBuffer:
    """The handle by which another process imports ``tensor``, which has to live for as long as anyone does.

    In place: every view of its storage stays valid. A descriptor that has to travel with the handle is appended to
    ``descriptors``; it belongs to the storage.
    """
    if not tensor.is_contiguous():
        raise ValueError("only contiguous tensors can be shared")
    return _export_cuda(tensor) if tensor.is_cuda else _export_cpu(tensor, descriptors)


def import_tensor(handle: CudaBuffer | CpuBuffer, descriptors: Sequence[int]) -> Tensor:
    """Another process's tensor, valid while that process lives: the last view of it unmaps the memory here.

    ``descriptors`` are those that came with the message; they stay the caller's to close.
    """
    if handle.dtype not in _DTYPES:
        raise ValueError(f"a shared buffer of type {handle.dtype}")
    return _import_cuda(handle) if isinstance(handle, CudaBuffer) else _import_cpu(handle, descriptors)


def _export_cpu(tensor: Tensor, descriptors: list[int]) -> CpuBuffer:
    # Swaps the storage's memory for an unlinked shared segment, unless it is one already.
    descriptor, num_bytes = tensor.untyped_storage()._share_fd_cpu_()
    descriptors.append(descriptor)
    return CpuBuffer(
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        offset=int(tensor.storage_offset()),
        storage_bytes=num_bytes,
        descriptor_index=len(descriptors) - 1,
    )


def _import_cpu(handle: CpuBuffer, descriptors: Sequence[int]) -> Tensor:
    if not 0 <= handle.descriptor_index < len(descriptors):
        raise ValueError("a shared buffer came without its descriptor")
    dtype, count = _DTYPES[handle.dtype], math.prod(handle.shape)
    descriptor = descriptors[handle.descriptor_index]
    if not (handle.offset + count) * dtype.itemsize <= handle.storage_bytes <= os.fstat(descriptor).st_size:
        raise ValueError(f"a shared buffer of shape {handle.shape} does not lie in its {handle.storage_bytes} bytes")
    memory = mmap.mmap(descriptor, handle.storage_bytes)  # lives as long as the tensor, which holds it
    flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=handle.offset * dtype.itemsize)
    return flat.view(handle.shape)


def _export_cuda(tensor: Tensor) -> CudaBuffer:
    # PyTorch counts one importer for each call: a handle serves one client only.
    device, memory, num_bytes, offset_bytes, counter, counter_offset, event, sync = (
        tensor.untyped_storage()._share_cuda_()
    )
    return CudaBuffer(
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        offset=int(tensor.storage_offset()),
        device=device,
        device_uuid=_uuid(device),
        memory_handle=memory,
        storage_bytes=num_bytes,
        storage_offset_bytes=offset_bytes,
        counter_handle=counter,
        counter_offset=counter_offset,
        event_handle=event,
        event_sync_required=sync,
    )


def _import_cuda(handle: CudaBuffer) -> Tensor:
    device = _local_device(handle.device_uuid)
    torch.cuda.init()
    storage = torch.UntypedStorage._new_shared_cuda(
        device,
        handle.memory_handle,
        handle.storage_bytes,
        handle.storage_offset_bytes,
        handle.counter_handle,
        handle.counter_offset,
        handle.event_handle,
        handle.event_sync_required,
    )
    empty = torch.empty(0, dtype=_DTYPES[handle.dtype], device=storage.device)
    return empty.set_(storage, handle.offset, handle.shape)  # type: ignore[call-overload]


def _uuid(device: int) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def _local_device(uuid: str) -> int:
    for device in range(torch.cuda.device_count()):
        if _uuid(device) == uuid:
            return device
    raise UserError(f"the generator's GPU {uuid} is not visible to this client: --share-buffers needs the same one")
