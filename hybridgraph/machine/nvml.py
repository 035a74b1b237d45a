"""What NVML tells of a GPU: asked beside CUDA, so also by a process that has no part in the work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any


def number_gpus_as_nvml() -> None:
    """Let CUDA number GPUs as NVML and nvidia-smi do, in this process and its children; before CUDA is initialized.

    Left to itself it begins with the fastest one.
    """
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"


class Nvml:
    """A session about the GPU ``uuid``. A value that the driver refuses becomes the text ``not told: REASON``."""

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._library = pynvml
        self._handle = None
        with suppress(pynvml.NVMLError):  # every question is then refused, and says why
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def ask(self, questions: Mapping[str, Callable[[Any, Any], Any]]) -> dict[str, Any]:
        """The answer to each of ``questions``, functions of the library and the GPU's handle, as JSON values."""
        answers = {}
        for name, question in questions.items():
            try:
                answers[name] = question(self._library, self._handle)
            except self._library.NVMLError as error:
                answers[name] = f"not told: {error}"
        return answers

    def close(self) -> None:
        with suppress(self._library.NVMLError):
            self._library.nvmlShutdown()


# What ``describe_gpu`` tells of a moment, not of the machine.
MOMENTARY = frozenset({"sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c"})


def describe_gpu(uuid: str) -> dict[str, Any]:
    """Driver, clocks in MHz, power in W and temperature in °C of the GPU ``uuid``."""
    with closing(Nvml(uuid)) as nvml:
        return nvml.ask(
            {
                "driver": lambda nvml, _: nvml.nvmlSystemGetDriverVersion(),
                "sm_clock_mhz": _sm_clock_mhz,
                "memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
                "max_sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
                "power_cap_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
                "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
                "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            }
        )


class GpuMeter:
    """What a GPU spent, and what held its clock back, from one ``lap`` to the next.

    Both come from counters that the driver keeps: nothing is sampled, and nothing runs beside the measurement.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml = Nvml(uuid)
        self._last = self._read()

    def lap(self) -> dict[str, Any]:
        """Since the last lap: wall time, energy, and how long the power cap or the temperature lowered the clock.

        Beside them the clock as it is now.
        """
        before, self._last = self._last, self._read()
        spent = {key: _difference(self._last[key], before[key]) for key in before}
        return spent | self._nvml.ask({"sm_clock_mhz": _sm_clock_mhz})

    def close(self) -> None:
        self._nvml.close()

    def _read(self) -> dict[str, Any]:
        return {"wall_ms": time.perf_counter() * 1e3} | self._nvml.ask(
            {
                "energy_j": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
                "power_capped_ms": lambda nvml, gpu: _violation_ms(nvml, gpu, nvml.NVML_PERF_POLICY_POWER),
                "thermally_capped_ms": lambda nvml, gpu: _violation_ms(nvml, gpu, nvml.NVML_PERF_POLICY_THERMAL),
            }
        )


def _sm_clock_mhz(nvml: Any, gpu: Any) -> Any:
    return nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)


def _violation_ms(nvml: Any, gpu: Any, policy: int) -> float:
    return float(nvml.nvmlDeviceGetViolationStatus(gpu, policy).violationTime) / 1e6


def _difference(after: Any, before: Any) -> Any:
    refusal = next((value for value in (after, before) if isinstance(value, str)), None)
    return after - before if refusal is None else refusal
