"""The proof that static operations answer as the module does, and can be captured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.forward.static import StaticOperations
from hybridgraph.engine.graphs.capture import CapturedGraph, backend_for
from hybridgraph.engine.graphs.pool import CAPTURING
from hybridgraph.errors import UserError, one_line
from hybridgraph.models.faults import model_fault

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


def places_of(positions: int) -> list[Place]:
    """The beginning, where most of what a module has of its own shows, and the end of what is served."""
    places = Place(5, 8), Place(positions - 2, positions)
    return [place for place in places if 0 < place.length < place.padded <= positions]


def require_same_logits(static: StaticOperations, plain: StaticOperations, buffers: StaticBuffers) -> None:
    """Raise UserError where at some place every probe gets other logits than by ``plain``.

    Modules differ in what their attention makes of a finished mask, of a cache that is larger than the answer, and of
    a position far from the first. What is found is what changes the logits by more than rounding does: with many
    layers in bfloat16, that is a sixth.
    """
    places = places_of(buffers.positions)
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


def require_capturable(static: StaticOperations, buffers: StaticBuffers) -> None:
    """Raise UserError where a step of decoding, or a short prompt, cannot be captured: a graph waits for nothing."""
    backend = backend_for(buffers.logits.device)
    length = min((place.padded for place in places_of(buffers.positions)), default=1)  # which has run before
    static.point_at(0, length - 1)
    captured: list[CapturedGraph] = []  # until both are: the memory they share ends with the last graph in it
    try:
        for run in (static.run_decode, lambda: static.run_prefill(length)):
            with CAPTURING:
                captured.append(backend.capture(run, run))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(f"the model's forward cannot be captured ({one_line(error)})") from None
    finally:
        for graph in captured:
            graph.free()


def require_runs(static: StaticOperations, buffers: StaticBuffers) -> None:
    """Raise what ``static`` raises at any of the places."""
    for place in places_of(buffers.positions):
        _fill(buffers, place, 0)
        _answer(static, buffers, place.length)


@contextmanager
def faults_told() -> Iterator[None]:
    """Raise UserError for whatever a module, or its configuration, does that is not made for static buffers."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or (fault := model_fault(error)) is None:
            raise
        raise UserError(f"the model does not run over static buffers ({fault})") from None


def _difference_of(static: StaticOperations, plain: StaticOperations, buffers: StaticBuffers, place: Place) -> float:
    """How far ``static``'s logits of the probe in the buffers are from ``plain``'s, relative to those."""
    expected = _answer(plain, buffers, place.length)
    with faults_told():
        found = _answer(static, buffers, place.padded)
    return max(map(_difference, found, expected))


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
