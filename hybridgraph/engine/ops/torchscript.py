"""Dynamic operations compiled by ``torch.jit.script``, as the study did."""

from __future__ import annotations

import warnings

import torch

from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.compilers import TORCHSCRIPT, require_compiled
from hybridgraph.engine.ops import native
from hybridgraph.engine.ops.protocol import DynamicOps


class TorchScriptOps(DynamicOps):
    """Compiled when this module is imported, and optimized in their first runs."""

    def compile(self, buffers: StaticBuffers) -> None:
        """As every implementation's; raises UserError where ``torch.jit.script`` gives back what it was given."""
        scripted = all(isinstance(op, torch.jit.ScriptFunction) for op in (self.preprocess, self.sample, self.greedy))
        require_compiled(scripted, "ops torchscript", TORCHSCRIPT)
        super().compile(buffers)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what this implementation is about
    OPS = TorchScriptOps(
        preprocess=torch.jit.script(native.preprocess),
        sample=torch.jit.script(native.sample),
        greedy=torch.jit.script(native.greedy),
    )
