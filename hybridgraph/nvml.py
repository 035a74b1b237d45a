"""What NVML tells of a GPU: asked beside CUDA, so also by a process that has no part in the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def describe_gpu(uuid: str) -> dict[str, Any]:
    """Driver, clocks in MHz, power in W and temperature in °C of the GPU ``uuid``, as JSON values."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return _answers(
            {
                "driver": pynvml.nvmlSystemGetDriverVersion,
                "sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
                "memory_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
                "max_sm_clock_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
                "power_cap_w": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
                "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            }
        )
    finally:
        pynvml.nvmlShutdown()


class GpuMeter:
    """What a GPU spent, and what held its clock back, from one ``lap`` to the next.

    Both come from counters that the driver keeps: nothing is sampled, and nothing runs beside the measurement.
    """

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self._last = self._read()

    def lap(self) -> dict[str, Any]:
        """Since the last lap: wall time, energy, and how long the power cap or the temperature lowered the clock.

        Beside them the clock as it is now. What the driver does not count is stored as its refusal.
        """
        before, self._last = self._last, self._read()
        spent = {key: _difference(self._last[key], before[key]) for key in before}
        clock = {"sm_clock_mhz": lambda: self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)}
        return spent | _answers(clock)

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _read(self) -> dict[str, Any]:
        nvml, handle = self._nvml, self._handle

        def held_back_ms(policy: int) -> float:
            return float(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime) / 1e6

        return {"wall_ms": time.perf_counter() * 1e3} | _answers(
            {
                "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
                "power_capped_ms": lambda: held_back_ms(nvml.NVML_PERF_POLICY_POWER),
                "thermally_capped_ms": lambda: held_back_ms(nvml.NVML_PERF_POLICY_THERMAL),
            }
        )


def _answers(questions: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What each question is answered; what a GPU, or a virtual machine around it, does not tell is stored as that."""
    import pynvml

    answers = {}
    for name, ask in questions.items():
        try:
            answers[name] = ask()
        except pynvml.NVMLError as error:
            answers[name] = f"not told: {error}"
    return answers


def _difference(after: Any, before: Any) -> Any:
    return after if isinstance(after, str) or isinstance(before, str) else after - before
