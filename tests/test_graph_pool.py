"""When a captured graph has paid for itself."""

import threading
import time

import pytest
import torch

from hybridgraph.cases import CASE2, CASE4, Case
from hybridgraph.config import SETTINGS, Config
from hybridgraph.engine.graphs.capture import CaptureCost, CapturedGraph, EmulatedGraph, EmulatedGraphs
from hybridgraph.engine.graphs.lock import EngineLock
from hybridgraph.engine.graphs.policy import RULES, GraphCache
from hybridgraph.engine.graphs.pool import GraphPool, _economics
from hybridgraph.report.ablation import CHANGED
from hybridgraph.settings import Told
from hybridgraph.sources.build import open_engine


def cost(ms: float, mib: float, *, before_serving: bool) -> CaptureCost:
    """Of a graph whose warm-up, capture and first replay take ``ms`` each, and that saves ``ms`` a request."""
    return CaptureCost(
        warmup_ms=ms, eager_ms=ms + 1 if before_serving else None, capture_ms=ms, first_replay_ms=ms, replay_ms=1.0,
        pool_mib=0.0, driver_mib=mib, num_nodes=None,
    )  # fmt: skip


def test_economics_are_medians_over_the_graphs_captured_before_serving() -> None:
    before = [cost(ms, mib, before_serving=True) for ms, mib in ((2.0, 4.0), (4.0, 6.0), (100.0, 200.0))]
    later = [cost(1000.0, 1000.0, before_serving=False)] * 9
    assert _economics([*before, *later]) == {
        "seconds_a_graph": pytest.approx(0.012),
        "driver_mib_a_graph": 70.0,
        "saved_ms_a_request": 4.0,
        "requests_to_pay_back": pytest.approx(3.0),
    }


def test_what_a_capture_took_is_no_warm_up() -> None:
    cache: GraphCache[CapturedGraph] = GraphCache(RULES["exact"], max_graphs=1, max_length=8)
    pool = GraphPool(None, EmulatedGraphs(), cache, None)  # type: ignore[arg-type]  # neither is needed
    _, made = pool._timed_capture(lambda: time.sleep(0.05), lambda: None, time_eager=True)
    assert made.eager_ms is not None
    assert made.capture_ms < 40 < min(made.warmup_ms, made.eager_ms)


def test_a_graph_is_charged_with_what_leaves_with_it() -> None:
    assert cost(1.0, 4.0, before_serving=True).own_mib == 4.0
    assert CaptureCost(driver_mib=232.0, pool_mib=230.0).own_mib == 2.0
    assert CaptureCost(driver_mib=-400.0).own_mib == 0.0, "another process has freed memory meanwhile"


def test_the_pools_budget_reaches_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    used = iter(range(0, 10**6, 40))
    monkeypatch.setattr(
        "hybridgraph.engine.graphs.capture.EmulatedGraphs.memory_mib", lambda _: (0.0, float(next(used)))
    )
    config = Config(model="tiny-llama", device="cpu", precapture="10,20,30,40", max_graph_mib=100, async_capture=False)
    with open_engine(config, CASE4) as engine:
        assert engine.stats()["graphs_held"] == 2
    assert "2 of 4 graphs captured in advance had no room in the pool" in capsys.readouterr().err
    budget = SETTINGS["max_graph_mib"]
    assert budget.opens and budget.limits and budget.told is Told.WHERE_UNUSUAL and budget in CHANGED


def test_pool_that_is_counted_during_an_exchange_is_counted_after_it() -> None:
    """What the background adds to the pool, it adds with the lock held: counting waits for that."""
    lock = EngineLock(torch.device("cpu"))
    cache: GraphCache[CapturedGraph] = GraphCache(RULES["exact"], max_graphs=1, max_length=8)
    pool = GraphPool(None, EmulatedGraphs(), cache, lock)  # type: ignore[arg-type]  # it captures nothing
    told: list[dict[str, object]] = []
    asking = threading.Thread(target=lambda: told.append(pool.stats()))
    with lock.against_requests:
        asking.start()
        asking.join(0.2)
        assert asking.is_alive()
        cache.insert(5, EmulatedGraph(lambda: None))
    asking.join(60.0)
    assert told[0]["graphs_held"] == 1


def test_without_graphs_captured_before_serving_there_are_none() -> None:
    assert _economics([]) == _economics([cost(2.0, 4.0, before_serving=False)]) == {}


@pytest.mark.parametrize(("case", "captured"), [(CASE2, ["10", "33"]), (CASE4, ["10", "40", "120"])])
def test_precapture_on_a_cpu_emulates_only_graphs_that_serve_what_is_measured(case: Case, captured: list[str]) -> None:
    config = Config(model="tiny-llama", device="cpu", prompt_lengths=(10, 33, 120), async_capture=False)
    with open_engine(config, case) as engine:
        assert [length for length in engine.stats()["capture_costs"] if length != "0"] == captured
