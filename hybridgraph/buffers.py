"""The engine's static buffers: one address each for as long as the engine lives, so that graphs can hold them."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from hybridgraph.records import Request


class StaticBuffers:
    """What a request passes through on its way in and out.

    A request reaches the device in one copy: the draws of its answer (temperature and a uniform
    number, two float32, for each token), then its ids, int64, packed into one pinned buffer.
    """

    def __init__(self, *, positions: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.positions = positions
        self.ids = torch.zeros(positions, dtype=torch.int64, device=device)  # a prefill graph's input
        self.last = torch.zeros(1, dtype=torch.int64, device=device)  # index of the last real id
        self.token = torch.zeros(1, dtype=torch.int64, device=device)  # a decode graph's input
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # where that token goes
        self.logits = torch.zeros(vocab_size, dtype=dtype, device=device)
        self._packed_host = torch.zeros(2 * positions, dtype=torch.int64, pin_memory=pinned)
        self._packed = torch.zeros(2 * positions, dtype=torch.int64, device=device)
        self._ids_host = self._packed_host.numpy()
        self._draws_host = self._packed_host.view(torch.float32).numpy().reshape(-1, 2)
        self.draws = self._packed.view(torch.float32).view(-1, 2)  # [token, (temperature, uniform)]
        self.tokens_host = torch.zeros(positions, dtype=torch.int64, pin_memory=pinned)
        self._tokens_read = self.tokens_host.numpy()

    def stage(self, request: Request) -> Tensor:
        """Send the request to the device; returns its ids there, int64 [num_ids]."""
        num_draws = request.max_new_tokens if request.temperature else 0
        end = num_draws + len(request.prompt_ids)
        if num_draws:
            uniform = random.Random(request.seed).random
            self._draws_host[:num_draws, 0] = request.temperature
            self._draws_host[:num_draws, 1] = np.fromiter((uniform() for _ in range(num_draws)), np.float32, num_draws)
            # Rounding to float32 can reach 1, which no draw may be.
            np.minimum(self._draws_host[:num_draws, 1], np.float32(1 - 2**-24), out=self._draws_host[:num_draws, 1])
        self._ids_host[num_draws:end] = request.prompt_ids
        self._packed[:end].copy_(self._packed_host[:end], non_blocking=True)
        return self._packed[num_draws:end]

    def token_at(self, step: int) -> int:
        """The ``step``-th id of the answer, once its copy is done."""
        return int(self._tokens_read[step])
