"""A forward over a model's weights, bound to the engine's buffers: the static operations that graphs capture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybridgraph.engine.buffers import StaticBuffers, overflowed
from hybridgraph.engine.forward.hf import EagerHFForward, StaticHFForward
from hybridgraph.engine.forward.protocol import Forward
from hybridgraph.errors import UserError, one_line

PROBES, PROBE_LENGTH, PROBE_PADDED = 3, 5, 8
# How far two right forwards may be apart, in eps. Rounding errors add up over layers as a random walk does: two of 32
# layers in half precision were 13 eps apart at most, and 8 for a short prompt. Those had random weights; trained ones
# amplify a rounding now and then: of one probe SmolLM2's own float16 and the fused forward's are 20 eps apart.
EPS_APART, EPS_APART_A_LAYER = 8.0, 3.5  # the latter times the root of the number of layers


def open_static_operations(
    module: PreTrainedModel, forward: str, buffers: StaticBuffers, *, capturable: bool
) -> StaticOperations:
    """Bind the forward called so (``hf`` or ``fused``) over ``module``'s weights to ``buffers``.

    Raises UserError where it does not answer as the module itself, or does not cover the architecture.
    """
    if forward == "fused":
        from hybridgraph.engine.forward.fused import FusedForward

        static = StaticOperations(FusedForward(module), buffers)
        static.require_same_answer(StaticOperations(EagerHFForward(module), buffers), "use --forward hf")
        return static
    plain = StaticOperations(EagerHFForward(module), buffers)
    if not capturable:
        return plain
    static = StaticOperations(StaticHFForward(module, buffers.positions), buffers)
    static.require_same_answer(plain, "Cases 1 and 3 measure this model")
    return static


class StaticOperations:
    """Prefill and decode without arguments but a length, over one set of buffers and one cache."""

    def __init__(self, forward: Forward, buffers: StaticBuffers) -> None:
        self.kernels = forward.kernels
        self.supports_chunks = forward.supports_chunks
        self._forward = forward
        self._buffers = buffers
        self._cache = forward.allocate_cache(buffers.positions)

    def prepare(self, lengths: Sequence[int]) -> None:
        self._forward.prepare(lengths)

    def run_prefill(self, length: int) -> None:
        read = self._buffers.input
        read.fetch()
        self._forward.prefill(read.ids, length, read.start, read.last, self._cache, self._buffers.logits)

    def run_decode(self) -> None:
        buffers = self._buffers
        self._forward.decode(buffers.token, buffers.position, self._cache, buffers.logits)

    def point_at(self, start: int, last: int) -> None:
        self._buffers.input.point_at(start, last)

    def point_back(self) -> None:
        self._buffers.input.point_back()

    def forget_overflow(self) -> bool:
        """Whether the logits are not all finite. Then neither is the cache: its NaN must not reach later answers."""
        found = overflowed(self._buffers.logits)
        if found and self._forward.reads_masked:
            self._cache.keys.zero_()
            self._cache.values.zero_()
        return found

    def require_same_answer(self, plain: StaticOperations, advice: str) -> None:
        """Raise UserError, with ``advice``, where each probe gets other logits than ``plain``'s.

        A probe is a padded prompt and one token more. Modules differ in what their attention makes of a finished mask
        and of a cache that is larger than the answer. What is found is what changes the logits of every prompt by more
        than rounding does: with many layers in bfloat16, that is a sixth.
        """
        buffers = self._buffers
        if buffers.positions < PROBE_PADDED:
            return
        eps = torch.finfo(buffers.logits.dtype).eps
        most = max(1e-3, eps * max(EPS_APART, EPS_APART_A_LAYER * math.sqrt(self._cache.keys.shape[0])))
        least = math.inf
        for number in range(PROBES):
            least = min(least, self._difference_from(plain, number, advice))
            if least <= most:
                return
        raise UserError(f"over static buffers the model's logits differ by {least:.1%}: {advice}")

    def _difference_from(self, plain: StaticOperations, number: int, advice: str) -> float:
        """How far the logits of one probe are from ``plain``'s."""
        buffers = self._buffers
        first = number * PROBE_PADDED
        ids = torch.arange(first, first + PROBE_PADDED, device=buffers.logits.device)
        ids = (ids * 7919 + 11) % buffers.logits.shape[0]
        buffers.input.lent_ids[:PROBE_PADDED].copy_(ids)
        buffers.input.adopt(PROBE_LENGTH)
        buffers.token.copy_(ids[PROBE_LENGTH : PROBE_LENGTH + 1])
        buffers.position.fill_(PROBE_LENGTH)
        try:
            answer = self._probe(PROBE_PADDED)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"the model does not run over static buffers ({one_line(error)}): {advice}") from None
        return max(map(_difference, answer, plain._probe(PROBE_LENGTH)))

    def _probe(self, length: int) -> tuple[Tensor, Tensor]:
        """Logits of a prefill and of a decode step on what lies in the buffers."""
        self.run_prefill(length)
        first = self._buffers.logits.clone()
        self.run_decode()
        return first, self._buffers.logits.clone()

    def rehearse_prefill(self, length: int) -> None:
        """Prefill on ids, cache and logits of its own: background warm-up must not touch a live request's."""
        ids, first = torch.zeros_like(self._buffers.input.ids[:length]), torch.zeros_like(self._buffers.position)
        logits = torch.empty_like(self._buffers.logits)
        self._forward.prefill(ids, length, first, first, self._forward.allocate_cache(length), logits)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Relative to what is expected; none where that is not finite itself."""
    expected = expected.float()
    if not expected.isfinite().all():
        return 0.0
    error = float((found.float() - expected).norm() / expected.norm().clamp_min(1e-30))
    return math.inf if math.isnan(error) else error
