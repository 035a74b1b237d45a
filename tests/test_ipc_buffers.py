"""Tensors shared with another process: its writes are seen here, and lifetimes are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from hybridgraph.serving.ipc.buffers import export_tensor, import_tensor
from hybridgraph.serving.ipc.messages import CpuBuffer

ROOT = Path(__file__).resolve().parents[1]

# Doubles imported tensors in place; descriptors are inherited under the same numbers.
IMPORTER = """
import sys, msgspec
from hybridgraph.serving.ipc.buffers import import_tensor
from hybridgraph.serving.ipc.messages import CpuBuffer, CudaBuffer
handles = msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=list[CpuBuffer | CudaBuffer])
for handle in handles:
    tensor = import_tensor(handle, [int(number) for number in sys.argv[2:]])
    print(tensor.double().sum().item())
    tensor.mul_(2)
    if tensor.is_cuda:
        tensor.sum().item()  # the device has finished before this process says so by ending
"""


def double_elsewhere(tensors: list[torch.Tensor]) -> list[float]:
    """The sums that another process sees, which doubles every element after that."""
    descriptors: list[int] = []
    handles = msgspec.msgpack.encode([export_tensor(tensor, descriptors) for tensor in tensors]).hex()
    child = subprocess.run(
        [sys.executable, "-c", IMPORTER, handles, *map(str, descriptors)],
        pass_fds=descriptors,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return [float(line) for line in child.stdout.split()]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_another_process_reads_and_writes_the_same_memory(device: str) -> None:
    dtypes = (torch.int64, torch.float32, torch.float16, torch.bfloat16)
    wholes = [torch.randint(-50, 50, (7, 5), device=device).to(dtype) for dtype in dtypes]
    early_views = [whole[3] for whole in wholes]
    before = [whole.clone() for whole in wholes]
    sums = double_elsewhere([whole[2:4] for whole in wholes])
    assert sums == [tensor[2:4].double().sum().item() for tensor in before]
    for whole, view, was in zip(wholes, early_views, before, strict=True):
        was[2:4] *= 2
        assert torch.equal(whole, was)
        assert torch.equal(view, was[3])  # a view from before the export is still of this tensor


def test_exporting_twice_gives_the_same_memory() -> None:
    tensor = torch.arange(10)
    descriptors: list[int] = []
    first, second = export_tensor(tensor, descriptors), export_tensor(tensor, descriptors)
    import_tensor(second, descriptors)[0] = 41
    assert import_tensor(first, descriptors).tolist() == [41, *range(1, 10)]
    assert tensor[0] == 41


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        export_tensor(torch.zeros(4, 4).t(), [])
    tensor, descriptors = torch.zeros(4), list[int]()
    handle = export_tensor(tensor, descriptors)
    assert isinstance(handle, CpuBuffer)
    for change, error in (
        ({"shape": (5,)}, "does not lie in"),
        ({"offset": 1}, "does not lie in"),
        ({"shape": (1 << 20,), "storage_bytes": 4 << 20}, "does not lie in"),
        ({"dtype": "object"}, "of type object"),
        ({"descriptor_index": 1}, "without its descriptor"),
    ):
        with pytest.raises(ValueError, match=error):
            import_tensor(msgspec.structs.replace(handle, **change), descriptors)
