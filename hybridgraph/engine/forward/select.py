"""Which forward an engine runs: one that is proven to answer as the module does, or none, and what measures it then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.forward.hf import EagerHFForward, StaticHFForward
from hybridgraph.engine.forward.probe import faults_told, require_capturable, require_runs, require_same_logits
from hybridgraph.engine.forward.static import StaticOperations
from hybridgraph.engine.forward.weights import CannotPack
from hybridgraph.errors import UserError, one_line
from hybridgraph.system.console import say


def open_static_operations(
    module: PreTrainedModel, forward: str, buffers: StaticBuffers, *, capturable: bool, weights: str = "plain"
) -> StaticOperations:
    """Bind the forward called so (``hf`` or ``fused``) over ``module``'s ``weights`` to ``buffers``.

    Raises UserError where the forward does not cover the architecture, or does not answer as the module does when its
    own ``generate()`` calls it. It says what else measures the model: that has been tried.
    """
    choice = Choice(module, buffers, StaticOperations(EagerHFForward(module), buffers), capturable)
    if forward == "hf" and not capturable:
        return choice.plain
    try:
        return choice.first_proven([partial(_open_fused, weights)] if forward == "fused" else HF_OPENERS)
    except CannotPack:
        raise
    except UserError as refusal:
        raise UserError(f"{refusal}: {choice.what_else(forward)}") from None


Opener = Callable[[PreTrainedModel, StaticBuffers], StaticOperations]


def _open_fused(weights: str, module: PreTrainedModel, buffers: StaticBuffers) -> StaticOperations:
    from hybridgraph.engine.forward.fused import FusedForward

    forward = FusedForward(module, weights=weights)
    if weights == "auto" and forward.why_plain is not None:
        say(f"weights stay plain: {forward.why_plain}")
    return StaticOperations(forward, buffers)


def _open_hf(counts: bool, module: PreTrainedModel, buffers: StaticBuffers) -> StaticOperations:
    return StaticOperations(StaticHFForward(module, buffers.positions, counts=counts), buffers)


HF_OPENERS = [partial(_open_hf, True), partial(_open_hf, False)]


@dataclass(frozen=True)
class Choice:
    """What forwards are opened over, and ``plain``, which they are compared with."""

    module: PreTrainedModel
    buffers: StaticBuffers
    plain: StaticOperations
    capturable: bool  # whether they have to be

    def first_proven(self, openers: Sequence[Opener]) -> StaticOperations:
        """The first of the forwards that is proven; raises what was said of the first where none is."""
        refusals = []
        for opener in openers:
            try:
                return self._proven(opener)
            except UserError as refusal:
                refusals.append(refusal)
        raise refusals[0]

    def what_else(self, forward: str) -> str:
        """What measures the model instead of ``forward``."""
        if forward == "fused" and self.capturable and not _fault_of(lambda: self.first_proven(HF_OPENERS)):
            return "use --forward hf"
        if not (fault := _fault_of(lambda: require_runs(self.plain, self.buffers))):
            return "Cases 1 and 3 measure this model" if self.capturable else "use --forward hf"
        prompt = torch.ones((1, 2), dtype=torch.int64, device=self.buffers.logits.device)
        if not _fault_of(lambda: self.module.generate(prompt, max_new_tokens=2, do_sample=False)):
            return f"Case 1 alone measures this model ({fault})"
        return f"no case measures this model ({fault})"

    def _proven(self, opener: Opener) -> StaticOperations:
        with faults_told():
            static = opener(self.module, self.buffers)
        require_same_logits(static, self.plain, self.buffers)
        if self.capturable:
            require_capturable(static, self.buffers)
        return static


def _fault_of(attempt: Callable[[], object]) -> str:
    """What ``attempt`` raises, on one line; nothing where it succeeds."""
    try:
        attempt()
    except Exception as error:
        return one_line(error)
    return ""
