"""Dynamic operations as plain PyTorch calls: one launch each. The other implementations are equal to these."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridgraph.engine.ops.protocol import DynamicOps


def preprocess(staged: Tensor, static: Tensor, last: Tensor) -> None:
    num_ids = staged.shape[0]
    static[:num_ids].copy_(staged)
    static[num_ids:].fill_(0)
    last.fill_(num_ids - 1)


def sample(logits: Tensor, draw: Tensor) -> Tensor:
    probabilities = torch.softmax(logits.float() / draw[0], dim=-1)
    cumulative = torch.cumsum(probabilities, dim=-1)
    # The last sum is not exactly 1: scaled by it, every draw below 1 finds an id.
    return torch.searchsorted(cumulative, draw[1:] * cumulative[-1:], right=True).clamp_(max=logits.shape[-1] - 1)


def greedy(logits: Tensor) -> Tensor:
    return torch.argmax(logits, dim=-1, keepdim=True)


OPS = DynamicOps(preprocess=preprocess, sample=sample, greedy=greedy)
