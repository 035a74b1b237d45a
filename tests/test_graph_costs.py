"""What is told of captures does not grow with their number."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hybridgraph.engine.graphs.capture import CaptureCost, CapturedGraph, EmulatedGraphs
from hybridgraph.engine.graphs.costs import DECODE, KEPT_FOR_QUANTILES, KEPT_WHOLE, CaptureCosts
from hybridgraph.engine.graphs.lock import EngineLock
from hybridgraph.engine.graphs.policy import RULES, GraphCache
from hybridgraph.engine.graphs.pool import GraphPool
from hybridgraph.serving.ipc.messages import MAX_FRAME_BYTES, Stats, encode


def random_cost(draw: random.Random, *, before_serving: bool = False) -> CaptureCost:
    times = {name: draw.random() * 100 for name in ("warmup_ms", "capture_ms", "first_replay_ms", "replay_ms")}
    return CaptureCost(**times, driver_mib=draw.random(), eager_ms=draw.random() * 100 if before_serving else None)


def pool_of(num_captures: int) -> GraphPool:
    import torch

    cache: GraphCache[CapturedGraph] = GraphCache(RULES["exact"], max_graphs=50, max_length=1 << 20)
    pool = GraphPool(None, EmulatedGraphs(), cache, EngineLock(torch.device("cpu")))  # type: ignore[arg-type]
    draw = random.Random(num_captures)
    for length in range(num_captures):
        pool.costs.add(length, random_cost(draw, before_serving=length <= 50))
    return pool


def fastest_ms(work: Callable[[], object]) -> float:
    times_ms = []
    for _ in range(50):
        start_ns = time.perf_counter_ns()
        work()
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return min(times_ms)


def test_stats_after_ten_thousand_captures_are_as_large_and_as_fast_as_after_few() -> None:
    def told(pool: GraphPool) -> bytearray:
        pool.costs.add(5, CaptureCost())  # so that nothing is told from memory
        return encode(Stats(values=pool.stats()))

    few, many = pool_of(KEPT_FOR_QUANTILES), pool_of(10_000)
    assert many.stats()["captures"] == 10_000
    assert len(told(many)) < 1.05 * len(told(few)) < MAX_FRAME_BYTES / 10
    assert fastest_ms(lambda: told(many)) < 2 * fastest_ms(lambda: told(few)) + 0.1


def test_costs_of_the_last_captures_are_whole() -> None:
    costs, draw = CaptureCosts(), random.Random(1)
    costs.add(DECODE, random_cost(draw))
    for length in range(1, 51):
        costs.add(length, random_cost(draw, before_serving=True))
    assert list(costs.last()) == [str(length) for length in range(51)], "the study's are all told"
    for length in range(100, 1000):
        costs.add(length, last := random_cost(draw))
    assert list(costs.last()) == [str(length) for length in range(1000 - KEPT_WHOLE, 1000)]
    assert costs.last()["999"] == asdict(last)
    costs.add(950, again := random_cost(draw))
    assert costs.last()["950"] == asdict(again) and len(costs.last()) == KEPT_WHOLE
    assert costs.num_captures == 1 + 50 + 900 + 1 and len(costs.before_serving) == 50


def test_quantiles_are_those_of_the_last_captures() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    costs, draw = CaptureCosts(), random.Random(seed)
    assert costs.quantiles() == {}
    given = [random_cost(draw) for _ in range(draw.randrange(1, 2 * KEPT_FOR_QUANTILES))]
    for length, cost in enumerate(given, start=1):
        costs.add(length, cost)
    recent = sorted(cost.capture_ms for cost in given[-KEPT_FOR_QUANTILES:])
    told: dict[str, Any] = costs.quantiles()
    assert told["captures"] == len(recent)
    assert told["capture_ms"]["max"] == recent[-1]
    assert told["capture_ms"]["p50"] == statistics.median_low(recent)
    below = sum(value <= told["capture_ms"]["p90"] for value in recent)
    assert below >= 0.9 * len(recent) > below - 1
