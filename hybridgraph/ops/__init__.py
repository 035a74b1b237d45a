"""The dynamic operations: what differs from request to request and stays outside the captured graphs.

One signature, three implementations (``native``, ``torchscript``, ``inductor``), equal to each other.

Sampling inverts the cumulative distribution at one uniform number that the host drew: the same
(logits, temperature, uniform) give the same id everywhere, and no device random-number state
exists that a capture could disturb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hybridgraph.errors import UserError


@dataclass(frozen=True)
class DynamicOps:
    """The implementations of one name.

    ``preprocess(staged, static, last)``: copy the prompt ``staged`` int64 [n] into the graph's input
    ``static`` int64 [length >= n], fill the rest with id 0, and set ``last`` int64 [1] to n - 1.

    ``sample(logits, draw) -> id``: logits [vocab] of any float type; ``draw`` float32 [2] holds
    temperature and a uniform number in [0, 1); the id is int64 [1]. Softmax of logits/temperature
    over the full vocabulary, in float32.

    ``greedy(logits) -> id``: the first of the largest logits, int64 [1].
    """

    name: str
    preprocess: Callable[[Tensor, Tensor, Tensor], None]
    sample: Callable[[Tensor, Tensor], Tensor]
    greedy: Callable[[Tensor], Tensor]


def dynamic_ops(name: str) -> DynamicOps:
    """The implementation called ``name``; each is imported, and compiled, only when it is asked for."""
    if name == "native":
        from hybridgraph.ops.native import OPS
    elif name == "torchscript":
        from hybridgraph.ops.torchscript import OPS
    elif name == "inductor":
        from hybridgraph.ops.inductor import OPS
    else:
        raise UserError(f"unknown dynamic operations '{name}': one of native, torchscript, inductor")
    return OPS
