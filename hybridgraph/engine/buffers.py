"""The engine's static buffers: one address each for as long as the engine lives, so that graphs can hold them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hybridgraph.engine.inputs import PromptInput


class StaticBuffers:
    """What a request passes through: the prompt's ``input``, then token, position and logits of each step."""

    def __init__(self, prompt_input: PromptInput, *, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.input = prompt_input
        self.positions = prompt_input.positions
        self.token = torch.zeros(1, dtype=torch.int64, device=device)  # a decode graph's input
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # where that token goes
        self.logits = torch.zeros(vocab_size, dtype=dtype, device=device)
        pinned = device.type == "cuda"
        self.tokens_host = torch.zeros(self.positions, dtype=torch.int64, device="cpu", pin_memory=pinned)
        self._token_words = self.tokens_host.numpy()

    def token_at(self, step: int) -> int:
        """The ``step``-th id of the answer, once its copy is done."""
        return int(self._token_words[step])


def overflowed(logits: Tensor) -> bool:
    """Whether ``logits`` are not all finite; waits for one kernel and one copy."""
    return not math.isfinite(logits.sum(dtype=torch.float32).item())
