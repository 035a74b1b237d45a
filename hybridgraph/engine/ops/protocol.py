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
from typing import ClassVar

from torch import Tensor

from hybridgraph.contract import Request
from hybridgraph.engine.buffers import StaticBuffers


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

    prefill_fetches_input: ClassVar[bool] = False  # ``place`` leaves the prompt on the host

    def place(self, request: Request, length: int, buffers: StaticBuffers) -> None:
        """Bring ``request`` to where the prefill of ``length`` ids reads it, or fetches it from."""
        self.preprocess(buffers.stage(request), buffers.ids[:length], buffers.last)

    def choose(self, request: Request, step: int, buffers: StaticBuffers) -> None:
        """Sample the ``step``-th id from ``logits`` into ``token``, and on to the host, which does not wait for it.

        An answer's steps are chosen in their order, from the first one on.
        """
        self._choose(request, step, buffers, buffers.draws)

    def compile(self, buffers: StaticBuffers) -> None:
        """Run each operation, at every kind of length that compilers specialize for."""
        for temperature in (0.7, 0.0):  # with and without a draw in front of the ids
            for num_ids, room in ((1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 8), (8, 8)):
                if room <= buffers.positions:
                    self.place(Request(prompt_ids=[0] * num_ids, temperature=temperature), room, buffers)
            for _ in range(3):  # TorchScript optimizes after it has seen two runs
                self.choose(Request(prompt_ids=[0], temperature=temperature), 0, buffers)

    def _choose(self, request: Request, step: int, buffers: StaticBuffers, draws: Tensor) -> None:
        token = self.sample(buffers.logits, draws[step]) if request.temperature else self.greedy(buffers.logits)
        buffers.token.copy_(token)
        buffers.tokens_host[step : step + 1].copy_(token, non_blocking=True)
