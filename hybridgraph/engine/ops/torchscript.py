"""Dynamic operations compiled by ``torch.jit.script``, as the study did."""

from __future__ import annotations

import warnings

import torch

from hybridgraph.engine.ops import native
from hybridgraph.engine.ops.protocol import DynamicOps

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what this implementation is about
    OPS = DynamicOps(
        preprocess=torch.jit.script(native.preprocess),
        sample=torch.jit.script(native.sample),
        greedy=torch.jit.script(native.greedy),
    )
