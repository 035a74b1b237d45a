"""Whether what is called compiled was compiled: a compiler that is switched off from outside says nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from hybridgraph.errors import UserError

TORCHSCRIPT = ("PYTORCH_JIT",)
DYNAMO = (
    "TORCHDYNAMO_DISABLE",
    "TORCH_COMPILE_DISABLE",
    "TORCHDYNAMO_SUPPRESS_ERRORS",
    "TORCH_COMPILE_OVERRIDE_BACKENDS",
)
TRITON = ("TRITON_INTERPRET",)


def require_compiled(compiled: bool, what: str, variables: tuple[str, ...]) -> None:
    """Raise UserError where ``what`` is not ``compiled``, naming those of ``variables`` that the environment sets."""
    if compiled:
        return
    found = [f"{name}={os.environ[name]}" for name in variables if name in os.environ]
    if found:
        raise UserError(f"{what} would run uncompiled, since the environment has {', '.join(found)}: unset it")
    raise UserError(f"{what} would run uncompiled: something in this process has switched their compiler off")


def require_triton_compiles(what: str) -> None:
    """Raise UserError where Triton interprets kernels instead of compiling them."""
    from triton.runtime.jit import JITFunction

    from hybridgraph.kernels.sampling import sample_kernel

    require_compiled(isinstance(sample_kernel, JITFunction), what, TRITON)


def require_dynamo_compiles(what: str) -> None:
    """Raise UserError where ``torch.compile`` gives back what it was given."""
    captured = []

    def capture(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        captured.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=capture)(torch.zeros(1))
    require_compiled(bool(captured), what, DYNAMO)
