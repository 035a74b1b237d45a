"""What a model's own forward raises: a fault of the model's, told in one line, or one of the machine's."""

from __future__ import annotations

import torch

from hybridgraph.errors import UserError, one_line

# In the texts of errors that have no type of their own.
MACHINE_ERRORS = ("can't allocate memory", "CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS")


def model_fault(error: Exception) -> str | None:
    """What ``error``, which a forward has raised, says of the model; None where memory or the device is at fault."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in MACHINE_ERRORS):
        return None
    return one_line(error) if isinstance(error, UserError) else one_line_with_type(error)


def one_line_with_type(error: Exception) -> str:
    """``error`` on one line: of a library's, the text alone says little."""
    text, name = one_line(error), type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}"
