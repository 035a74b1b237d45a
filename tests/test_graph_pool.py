"""When a captured graph has paid for itself."""

import pytest

from hybridgraph.graphs.capture import CaptureCost
from hybridgraph.graphs.pool import _economics


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


def test_without_graphs_captured_before_serving_there_are_none() -> None:
    assert _economics([]) == _economics([cost(2.0, 4.0, before_serving=False)]) == {}
