"""The rolling pool's policy: plain Python, no torch."""

import random

import pytest

from hybridgraph.graphs.policy import ExactRule, GraphCache, PaddedRule


def filled(rule: ExactRule | PaddedRule, lengths: list[int], max_graphs: int = 50) -> GraphCache[str]:
    cache: GraphCache[str] = GraphCache(rule, max_graphs=max_graphs, max_length=512)
    for length in lengths:
        cache.insert(length, f"graph {length}")
    return cache


def test_exact_serves_its_own_length_only() -> None:
    cache = filled(ExactRule(), [10, 20])
    assert cache.look_up(10) == (10, "graph 10")
    assert cache.look_up(11) is None


def test_exact_expects_the_successors_of_a_length_in_use() -> None:
    cache = filled(ExactRule(), [10])
    cache.served(10, 10, "exact")
    assert [cache.next_wanted() for _ in range(5)] == [11, 12, 13, 14, None]


def test_padded_takes_the_nearest_graph_above() -> None:
    cache = filled(PaddedRule(), list(range(10, 501, 10)))
    assert [cache.look_up(n)[0] for n in (10, 11, 95, 100, 491)] == [10, 20, 100, 100, 500]  # type: ignore[index]


@pytest.mark.parametrize("length", range(1, 513))
def test_padding_is_bounded(length: int) -> None:
    for key in range(1, 1024):
        if PaddedRule().choose(length, [key]) is not None:
            assert length <= key <= 2 * length
            assert length <= 80 or key <= 1.125 * length


def test_a_padded_length_is_worth_an_exact_graph() -> None:
    cache = filled(PaddedRule(), [100, 200])
    cache.served(95, 100, "padded")
    cache.served(100, 100, "exact")
    assert [cache.next_wanted(), cache.next_wanted()] == [95, None]


def test_least_recently_used_leaves_first() -> None:
    cache = filled(ExactRule(), [1, 2, 3], max_graphs=3)
    cache.look_up(1)
    assert cache.insert(4, "graph 4") == ["graph 2"]
    assert cache.lengths == [3, 1, 4]
    assert cache.counters.evicted == 1


def test_byte_budget_evicts_until_it_fits() -> None:
    cache: GraphCache[str] = GraphCache(ExactRule(), max_graphs=50, max_length=512, max_bytes=100)
    for length in (1, 2, 3):
        cache.insert(length, str(length), num_bytes=40)
    assert cache.lengths == [2, 3]
    assert cache.insert(4, "4", num_bytes=500) == ["2", "3"], "the newest stays even alone over budget"


def test_exact_graphs_never_cost_another_length_its_only_graph() -> None:
    cache = filled(PaddedRule(), list(range(500, 0, -10)))
    covered = [n for n in range(1, 513) if cache.look_up(n) is not None]
    for _ in range(2000):
        length = random.choice(covered)
        key, _graph = cache.look_up(length)  # type: ignore[misc]
        cache.served(length, key, "exact" if key == length else "padded")
        while (wanted := cache.next_wanted()) is not None:
            cache.insert(wanted, f"graph {wanted}")
        assert len(cache) <= 50
    assert [n for n in covered if cache.look_up(n) is None] == []


def test_counters_and_wishes_beyond_the_positions() -> None:
    cache = filled(ExactRule(), [512])
    cache.served(512, 512, "captured")
    assert cache.next_wanted() is None
    assert cache.snapshot()["captured"] == 1


def test_replacing_a_graph_returns_the_old_one() -> None:
    cache = filled(ExactRule(), [5])
    assert cache.insert(5, "new") == ["graph 5"]
    assert cache.look_up(5) == (5, "new")
    assert cache.clear() == ["new"]
    assert len(cache) == 0
