"""Which forward an engine runs, and the proof that it answers as the module does; or why none can be run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.forward.hf import EagerHFForward, StaticHFForward
from hybridgraph.engine.forward.static import StaticOperations
from hybridgraph.engine.forward.weights import CannotPack
from hybridgraph.errors import UserError, one_line
from hybridgraph.models.faults import model_fault
from hybridgraph.system.console import say

PROBES = 3  # prompts at each place, of which one has to get the right logits
# How far two right forwards may be apart, in eps. Rounding errors add up over layers as a random walk does: two of 32
# layers in half precision were 13 eps apart at most, and 8 for a short prompt. Those had random weights; trained ones
# amplify a rounding now and then: of one probe SmolLM2's own float16 and the fused forward's are 20 eps apart.
EPS_APART, EPS_APART_A_LAYER = 8.0, 3.5  # the latter times the root of the number of layers
LEAST_APART = 1e-4  # in float32, where right ones were 2e-6 apart


@dataclass(frozen=True)
class Place:
    """A probe's: ``length`` ids padded to ``padded``, and one token more, which goes to position ``length``."""

    length: int
    padded: int


Opener = Callable[[PreTrainedModel, StaticBuffers], StaticOperations]


def open_static_operations(
    module: PreTrainedModel, forward: str, buffers: StaticBuffers, *, capturable: bool, weights: str = "plain"
) -> StaticOperations:
    """Bind the forward called so (``hf`` or ``fused``) over ``module``'s ``weights`` to ``buffers``.

    Raises UserError where the forward does not cover the architecture, or does not answer as the module does when its
    own ``generate()`` calls it. It says what else measures the model: that has been tried.
    """
    plain = StaticOperations(EagerHFForward(module), buffers)
    if forward == "hf" and not capturable:
        return plain
    opener = partial(_open_fused, weights=weights) if forward == "fused" else _open_hf
    try:
        return _proven(opener, module, buffers, plain)
    except CannotPack:
        raise
    except UserError as refusal:
        instead = _what_else(module, forward, buffers, plain, capturable=capturable)
        raise UserError(f"{refusal}: {instead}") from None


def _open_fused(module: PreTrainedModel, buffers: StaticBuffers, weights: str) -> StaticOperations:
    from hybridgraph.engine.forward.fused import FusedForward

    forward = FusedForward(module, weights=weights)
    if weights == "auto" and forward.why_plain is not None:
        say(f"weights stay plain: {forward.why_plain}")
    return StaticOperations(forward, buffers)


def _open_hf(module: PreTrainedModel, buffers: StaticBuffers) -> StaticOperations:
    return StaticOperations(StaticHFForward(module, buffers.positions), buffers)


def _proven(
    opener: Opener, module: PreTrainedModel, buffers: StaticBuffers, plain: StaticOperations
) -> StaticOperations:
    """The forward that ``opener`` opens; raises UserError where at some place every probe gets other logits.

    Modules differ in what their attention makes of a finished mask, of a cache that is larger than the answer, and of
    a position far from the first. What is found is what changes the logits by more than rounding does: with many
    layers in bfloat16, that is a sixth.
    """
    with _faults_told():
        static = opener(module, buffers)
    places = _places(buffers.positions)
    static.prepare([place.padded for place in places])
    eps = torch.finfo(buffers.logits.dtype).eps
    most = max(LEAST_APART, eps * max(EPS_APART, EPS_APART_A_LAYER * math.sqrt(static.num_layers)))
    for place in places:
        least = math.inf
        for number in range(PROBES):
            _fill(buffers, place, number)
            least = min(least, _difference_of(static, plain, buffers, place))
            if least <= most:
                break
        else:
            raise UserError(f"over static buffers the logits at position {place.length} differ by {least:.1%}")
    return static


def _what_else(
    module: PreTrainedModel, forward: str, buffers: StaticBuffers, plain: StaticOperations, *, capturable: bool
) -> str:
    """What measures the model instead."""
    if forward == "fused" and capturable and not _fault_of(lambda: _proven(_open_hf, module, buffers, plain)):
        return "use --forward hf"
    if not (fault := _fault_of(lambda: _run_everywhere(plain, buffers))):
        return "Cases 1 and 3 measure this model" if capturable else "use --forward hf"
    prompt = torch.ones((1, 2), dtype=torch.int64, device=buffers.logits.device)
    if not _fault_of(lambda: module.generate(prompt, max_new_tokens=2, do_sample=False)):
        return f"Case 1 alone measures this model ({fault})"
    return f"no case measures this model ({fault})"


def _fault_of(attempt: Callable[[], object]) -> str:
    """What ``attempt`` raises, on one line; nothing where it succeeds."""
    try:
        attempt()
    except Exception as error:
        return one_line(error)
    return ""


def _run_everywhere(static: StaticOperations, buffers: StaticBuffers) -> None:
    for place in _places(buffers.positions):
        _fill(buffers, place, 0)
        _answer(static, buffers, place.length)


def _places(positions: int) -> list[Place]:
    """The beginning, where most of what a module has of its own shows, and the end of what is served."""
    places = Place(5, 8), Place(positions - 2, positions)
    return [place for place in places if 0 < place.length < place.padded <= positions]


def _difference_of(static: StaticOperations, plain: StaticOperations, buffers: StaticBuffers, place: Place) -> float:
    """How far ``static``'s logits of the probe in the buffers are from ``plain``'s, relative to those."""
    expected = _answer(plain, buffers, place.length)
    with _faults_told():
        found = _answer(static, buffers, place.padded)
    return max(map(_difference, found, expected))


@contextmanager
def _faults_told() -> Iterator[None]:
    """Raise UserError for whatever a module, or its configuration, does that is not made for static buffers."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or (fault := model_fault(error)) is None:
            raise
        raise UserError(f"the model does not run over static buffers ({fault})") from None


def _fill(buffers: StaticBuffers, place: Place, number: int) -> None:
    """Write one of the probes of a place into the buffers."""
    ids = torch.arange(number * place.padded, (number + 1) * place.padded, device=buffers.logits.device)
    ids = (ids * 7919 + 11) % buffers.logits.shape[0]
    buffers.input.lent_ids[: place.padded].copy_(ids)
    buffers.input.adopt(place.length)
    buffers.token.copy_(ids[place.length : place.length + 1])
    buffers.position.fill_(place.length)


def _answer(static: StaticOperations, buffers: StaticBuffers, length: int) -> tuple[Tensor, Tensor]:
    """Logits of a prefill and of a decode step on what lies in the buffers."""
    static.run_prefill(length)
    first = buffers.logits.clone()
    static.run_decode()
    return first, buffers.logits.clone()


def _difference(found: Tensor, expected: Tensor) -> float:
    """Relative to what is expected; none where that is not finite itself."""
    expected = expected.float()
    if not expected.isfinite().all():
        return 0.0
    error = float((found.float() - expected).norm() / expected.norm().clamp_min(1e-30))
    return math.inf if math.isnan(error) else error
