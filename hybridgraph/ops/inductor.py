"""Dynamic operations compiled by ``torch.compile`` for any prompt length at once."""

from __future__ import annotations

import torch

from hybridgraph.ops import DynamicOps, native

# Lengths are symbolic from the first call on, so that a new prompt length never compiles.
OPS = DynamicOps(
    preprocess=torch.compile(native.preprocess, dynamic=True),
    sample=torch.compile(native.sample, dynamic=False),
    greedy=torch.compile(native.greedy, dynamic=False),
)
