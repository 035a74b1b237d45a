"""The dynamic operations: what differs from request to request and stays outside the captured graphs.

One signature; four implementations, equal to each other, are modules beside this one.

Sampling inverts the cumulative distribution at one uniform number that the host drew: the same
(logits, temperature, uniform) give the same id everywhere, but where a draw falls so close to an
id's edge that sums in another order round it to the neighbour; and no device random-number state
exists that a capture could disturb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridgraph.contract import Request
from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.inputs import PromptInput, StagedInput


@dataclass(frozen=True)
class DynamicOps:
    """The implementations of one name: three functions of tensors, and the two steps of an answer made of them.

    ``preprocess(staged, static, last)``: copy the prompt ``staged`` int64 [n] into the graph's input
    ``static`` int64 [length >= n], fill the rest with id 0, and set ``last`` int64 [1] to n - 1.

    ``sample(logits, draw) -> id``: logits [vocab] of any float type; ``draw`` float32 [2] holds
    temperature and a uniform number in [0, 1); the id is int64 [1]. Softmax of logits/temperature
    over the full vocabulary, in float32.

    ``greedy(logits) -> id``: the first of the largest logits, int64 [1].
    """

    preprocess: Callable[[Tensor, Tensor, Tensor], None]
    sample: Callable[[Tensor, Tensor], Tensor]
    greedy: Callable[[Tensor], Tensor]

    def open_input(self, positions: int, device: torch.device) -> PromptInput:
        """The way in that these operations take."""
        return StagedInput(positions, device, self.preprocess)

    def sample_step(self, request: Request, step: int, buffers: StaticBuffers) -> None:
        """Sample the ``step``-th id from ``logits`` into ``token``, and on to the host, which does not wait for it.

        An answer's steps are sampled in their order, from the first one on.
        """
        logits, draws = buffers.logits, buffers.input.draws
        token = self.sample(logits, draws[step]) if request.temperature else self.greedy(logits)
        buffers.token.copy_(token)
        buffers.tokens_host[step : step + 1].copy_(token, non_blocking=True)

    def compile(self, buffers: StaticBuffers) -> None:
        """Run each operation, at every kind of length that compilers specialize for."""
        for temperature in (0.7, 0.0):  # with and without a draw in front of the ids
            for num_ids, room in ((1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 8), (8, 8)):
                if room <= buffers.positions:
                    buffers.input.place(Request(prompt_ids=[0] * num_ids, temperature=temperature), room)
            for _ in range(3):  # TorchScript optimizes after it has seen two runs
                self.sample_step(Request(prompt_ids=[0], temperature=temperature), 0, buffers)
