"""What is told of an engine that is not ours: its SourceInfo, and its errors as one line."""

from __future__ import annotations

import platform
import re

from hybridgraph.cases import Case
from hybridgraph.config import Config
from hybridgraph.errors import one_line
from hybridgraph.provenance import versions
from hybridgraph.records import SourceInfo
from hybridgraph.sources.checkpoint import Checkpoint
from hybridgraph.sources.introspection import Arguments
from hybridgraph.sources.nvidia import Gpu

# What an error's text matches, and what to do about it ("compile" holds the letters of MPI too).
_HINTS = (
    (r"(?<![a-z])(lib|open|o)?mpi", "check the MPI installation (Debian, Ubuntu: apt install libopenmpi-dev)"),
    ("out of memory", "the GPU is too small for this model, or another process holds its memory"),
    ("driver version is insufficient", "update the NVIDIA driver"),
    ("driver on your system is too old", "update the NVIDIA driver"),
    ("no module named", "install it in that environment"),
)


def info_of_engine(
    name: str, backend: str, version: str, *, config: Config, case: Case, gpu: Gpu, checkpoint: Checkpoint,
    arguments: Arguments, packages: tuple[str, ...],
) -> SourceInfo:  # fmt: skip
    """Who answers. Rates stay unknown: measuring them takes a torch of ours, and the other cases' runs have them."""
    return SourceInfo(
        model=checkpoint.name,
        dtype=checkpoint.dtype,
        load_format=checkpoint.load_format,
        device=gpu.name,
        vocab_size=checkpoint.vocab_size,
        max_seq_len=checkpoint.positions,
        special_ids=checkpoint.special_ids,
        graph_backend=backend,
        ops=f"inside {name}",
        forward=f"{name} {version}",
        shape=checkpoint.shape,
        environment={
            "case": case.key,
            "python": platform.python_version(),
            "system": platform.platform(),
            "packages": versions(*packages, "torch", "transformers", "numpy"),
            "gpu": {"name": gpu.name, "uuid": gpu.uuid, "driver": gpu.driver, "memory_bytes": gpu.memory_bytes},
            "engine": arguments.as_json(),
            "resolved_configuration": config.as_json() | {"model": checkpoint.name, "dtype": checkpoint.dtype},
        },
    )


def explained(error: BaseException) -> str:
    """An engine's error as one line, with what to do where that is known."""
    text = one_line(error)
    hint = next((advice for pattern, advice in _HINTS if re.search(pattern, str(error).lower())), None)
    return f"{text}: {hint}" if hint else text
