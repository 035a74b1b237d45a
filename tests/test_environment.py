"""What the machine is called, and the fallback where it does not say."""

import os
import platform
from pathlib import Path

import pytest
import torch

from hybridgraph.machine.device import describe, device_name, existing_device


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: A Processor\n\nmodel name\t: Another\n", "CPU, A Processor"),
        ("CPU implementer\t: 0x41\n", f"CPU, {platform.machine()}"),
        (None, f"CPU, {platform.machine()}"),
    ],
)
def test_the_name_of_the_processor(monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, name: str) -> None:
    def read(path: Path, **_: object) -> str:
        assert str(path) == "/proc/cpuinfo"
        if cpuinfo is None:
            raise FileNotFoundError(2, "No such file or directory")
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read)
    assert device_name(torch.device("cpu")) == name


def test_the_host_of_a_gpu_is_recorded_too() -> None:
    told = describe(torch.device("cpu"))["cpu"]
    assert f"CPU, {told['name']}" == device_name(torch.device("cpu"))
    assert 1 <= told["usable"] == len(os.sched_getaffinity(0)) <= told["threads"]


def test_gpus_are_numbered_as_nvidia_smi_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """By every case alike: the engines of other environments are told by the driver which GPU is theirs."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    existing_device("auto")
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
