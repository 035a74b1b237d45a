"""Device time of a kernel: replays of a CUDA graph that holds it once for each of several sets of inputs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")

ROUND_MS = 5.0
ROUNDS = 7


@dataclass(frozen=True)
class Work:
    """A kernel's launch, and the sets of inputs that take turns in it."""

    run: Callable[[Any], object]
    sets: Sequence[Any]

    def run_all(self) -> None:
        for inputs in self.sets:
            self.run(inputs)


def capture(work: Work) -> torch.cuda.CUDAGraph:
    """A graph of ``work`` on the current device, run once before: what compiles or tunes itself does so then."""
    work.run_all()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.run_all()
    graph.replay()
    return graph


def replay_ms(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    """Mean device ms of one of ``repeats`` replays in a row."""
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(repeats):
        graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / repeats


def compared_us(works: Mapping[Key, Work]) -> dict[Key, float]:
    """Device µs of one launch of each of ``works``: the median of ROUNDS rounds of ROUND_MS.

    The works take turns, so that a drifting clock is no one's advantage.
    """
    graphs = {key: capture(work) for key, work in works.items()}
    repeats = {key: math.ceil(ROUND_MS / max(replay_ms(graph, 2), 1e-3)) for key, graph in graphs.items()}
    rounds = [{key: replay_ms(graph, repeats[key]) for key, graph in graphs.items()} for _ in range(ROUNDS)]
    return {key: statistics.median(times[key] for times in rounds) * 1e3 / len(works[key].sets) for key in works}
