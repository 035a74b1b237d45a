"""The driver query of a machine with one GPU (``STAND_IN_DRIVER=absent``: of a machine without a driver).

That GPU draws 500 W, is under its power cap for half of the time, and does not count temperature.
"""

import os
import time
from types import SimpleNamespace

NVML_CLOCK_SM = 1
NVML_PERF_POLICY_POWER = 0
NVML_PERF_POLICY_THERMAL = 1


class NVMLError(Exception):
    pass


def nvmlInit():
    if os.environ.get("STAND_IN_DRIVER") == "absent":
        raise NVMLError("NVML Shared Library Not Found")


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return 1


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetHandleByUUID(uuid):
    return {"GPU-0": 0}[uuid]


def nvmlDeviceGetName(handle):
    return "Stand-in GPU"


def nvmlDeviceGetUUID(handle):
    return "GPU-0"


def nvmlDeviceGetClockInfo(handle, clock):
    return 1500


def nvmlDeviceGetTotalEnergyConsumption(handle):
    return int(500 * 1000 * time.perf_counter())


def nvmlDeviceGetViolationStatus(handle, policy):
    if policy == NVML_PERF_POLICY_THERMAL:
        raise NVMLError("Not Supported")
    return SimpleNamespace(violationTime=int(0.5e9 * time.perf_counter()))


def nvmlSystemGetDriverVersion():
    return b"580.00"


def nvmlSystemGetCudaDriverVersion():
    return 13000


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(total=80 << 30)
