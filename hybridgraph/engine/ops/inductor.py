"""Dynamic operations compiled by ``torch.compile`` for any prompt length at once."""

from __future__ import annotations

import torch

from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.ops import native
from hybridgraph.engine.ops.protocol import DynamicOps
from hybridgraph.errors import UserError, one_line


class InductorOps(DynamicOps):
    """Compiled when they are first run."""

    def compile(self, buffers: StaticBuffers) -> None:
        """As every implementation's; raises UserError where there is no compiler for what Inductor writes."""
        from torch._inductor.exc import InductorError

        try:
            super().compile(buffers)
        except InductorError as error:
            raise UserError(f"ops inductor: {one_line(error)}") from None


# Lengths are symbolic from the first call on, so that a new prompt length never compiles.
OPS = InductorOps(
    preprocess=torch.compile(native.preprocess, dynamic=True),
    sample=torch.compile(native.sample, dynamic=False),
    greedy=torch.compile(native.greedy, dynamic=False),
)
