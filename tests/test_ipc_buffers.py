"""Tensors shared with another process: its writes are seen here, and lifetimes are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from hybridgraph.ipc.buffers import ExportedBuffer, ImportedBuffer
from hybridgraph.ipc.messages import CpuBuffer

ROOT = Path(__file__).resolve().parents[1]

# Doubles an imported tensor in place; its descriptor is inherited under the same number.
IMPORTER = """
import sys, msgspec
from hybridgraph.ipc.buffers import ImportedBuffer
from hybridgraph.ipc.messages import CpuBuffer
handle = msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=CpuBuffer)
with ImportedBuffer(handle, [int(sys.argv[2])]) as buffer:
    print(buffer.tensor.double().sum().item())
    buffer.tensor.mul_(2)
"""


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float16, torch.bfloat16])
def test_another_process_reads_and_writes_the_same_memory(dtype: torch.dtype) -> None:
    whole = torch.randint(-50, 50, (7, 5)).to(dtype)
    part = whole[2:4]
    early_view = whole[3]
    before = whole.clone()
    with ExportedBuffer(part) as exported:
        handle = msgspec.msgpack.encode(exported.handle).hex()
        (descriptor,) = exported.descriptors
        child = subprocess.run(
            [sys.executable, "-c", IMPORTER, handle, str(descriptor)],
            pass_fds=[descriptor],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
    assert child.stderr == ""
    assert float(child.stdout) == before[2:4].double().sum().item()
    expected = before.clone()
    expected[2:4] *= 2
    assert torch.equal(whole, expected)
    assert torch.equal(early_view, expected[3])  # a view from before the export is still of this tensor


def test_exporting_twice_gives_the_same_memory() -> None:
    tensor = torch.arange(10)
    with ExportedBuffer(tensor) as first, ExportedBuffer(tensor, descriptor_index=1) as second:
        with ImportedBuffer(second.handle, [*first.descriptors, *second.descriptors]) as imported:
            imported.tensor[0] = 41
        with ImportedBuffer(first.handle, first.descriptors) as imported:
            assert imported.tensor.tolist() == [41, *range(1, 10)]
    assert tensor[0] == 41


def test_a_closed_import_is_not_to_be_used() -> None:
    with ExportedBuffer(torch.zeros(3)) as exported:
        imported = ImportedBuffer(exported.handle, exported.descriptors)
        imported.close()
        with pytest.raises(ValueError, match="closed"):
            imported.tensor.sum()


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        ExportedBuffer(torch.zeros(4, 4).t())
    with ExportedBuffer(torch.zeros(4)) as exported:
        handle = exported.handle
        assert isinstance(handle, CpuBuffer)
        for change, error in (
            ({"shape": (5,)}, "does not lie in"),
            ({"offset": 1}, "does not lie in"),
            ({"shape": (1 << 20,), "storage_bytes": 4 << 20}, "does not lie in"),
            ({"dtype": "object"}, "of type object"),
            ({"descriptor_index": 1}, "without its descriptor"),
        ):
            with pytest.raises(ValueError, match=error):
                ImportedBuffer(msgspec.structs.replace(handle, **change), exported.descriptors)
