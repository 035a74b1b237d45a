"""How the threads of the libraries wait for each other. Must be said before torch is imported."""

from __future__ import annotations

import os

from hybridgraph.errors import UserError
from hybridgraph.machine.driver import find_gpu

WAIT_POLICY = "OMP_WAIT_POLICY"


def wait_passively_on_cpu(device: str) -> None:
    """Where ``device`` (``--device``) means the CPU, let OpenMP's threads sleep while they wait, not spin.

    Spinning threads take the cores from those that they wait for, as soon as anything else runs on the machine: a
    request then takes ten times as long. What the user has set stays. What this process starts inherits it.
    """
    if device == "cpu" or (device == "auto" and not _finds_gpu()):
        os.environ.setdefault(WAIT_POLICY, "passive")


def _finds_gpu() -> bool:
    try:
        find_gpu("auto", "this run")
    except UserError:
        return False
    return True
