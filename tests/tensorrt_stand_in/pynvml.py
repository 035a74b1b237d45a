"""The driver query of a machine with one GPU (``STAND_IN_DRIVER=absent``: of a machine without a driver)."""

import os
from types import SimpleNamespace


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


def nvmlDeviceGetName(handle):
    return "Stand-in GPU"


def nvmlSystemGetDriverVersion():
    return b"580.00"


def nvmlSystemGetCudaDriverVersion():
    return 13000


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(total=80 << 30)
