"""Dynamic operations compiled by ``torch.compile`` for any prompt length at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.compilers import DYNAMO, require_compiled
from hybridgraph.engine.ops import native
from hybridgraph.engine.ops.protocol import DynamicOps
from hybridgraph.errors import UserError, one_line

COMPILED: set[str] = set()  # what Inductor has compiled in this process


class InductorOps(DynamicOps):
    """Compiled when they are first run."""

    def compile(self, buffers: StaticBuffers) -> None:
        """As every implementation's; raises UserError where there is no compiler for what Inductor writes."""
        from torch._inductor.exc import InductorError

        try:
            super().compile(buffers)
        except InductorError as error:
            raise UserError(f"ops inductor: {one_line(error)}") from None
        require_compiled({"preprocess", "sample", "greedy"} == COMPILED, "ops inductor", DYNAMO)


def _compiled(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
    """``torch.compile`` by Inductor, which notes what it has compiled: it is not asked where it is switched off."""

    def inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        compiled: Any = compile_fx(graph, inputs)
        COMPILED.add(function.__name__)
        return compiled

    return torch.compile(function, dynamic=dynamic, backend=inductor)


# Lengths are symbolic from the first call on, so that a new prompt length never compiles.
OPS = InductorOps(
    preprocess=_compiled(native.preprocess, dynamic=True),
    sample=_compiled(native.sample, dynamic=False),
    greedy=_compiled(native.greedy, dynamic=False),
)
