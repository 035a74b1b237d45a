"""The rolling pool's policy: plain Python, no torch."""

import random
from itertools import pairwise

import pytest

from hybridgraph.engine.graphs.policy import Chunk, ExactRule, GraphCache, PaddedRule


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
        if PaddedRule().serving(length, [key]) is not None:
            assert length <= key <= max(16, 2 * length)
            assert length <= 80 or key <= 1.125 * length


def test_a_long_prompt_runs_in_full_pieces_and_a_padded_one() -> None:
    captured = range(10, 501, 10)
    assert PaddedRule().split_into_chunks(1210, captured, 2048) == [Chunk(0, 500), Chunk(500, 500), Chunk(1000, 210)]
    assert PaddedRule().split_into_chunks(1003, captured, 2048) == [Chunk(0, 500), Chunk(500, 500), Chunk(1000, 10)]
    assert PaddedRule().split_into_chunks(800, [500, 400], 2048) == [Chunk(0, 500), Chunk(500, 400)]


@pytest.mark.parametrize(
    ("length", "captured", "max_length", "because"),
    [
        (300, [80], 512, "chunks of few tokens cost as much as many"),
        (5000, [100], 8192, "the weights would be read too often"),
        (250, [100, 90], 512, "the rest has no graph within the padding bound"),
        (590, [500, 100], 595, "padding would lie beyond the positions"),
        (300, [], 512, "there is no graph"),
    ],
)
def test_what_is_not_worth_pieces(length: int, captured: list[int], max_length: int, because: str) -> None:
    assert PaddedRule().split_into_chunks(length, captured, max_length) is None, because


@pytest.mark.parametrize("repetition", range(200))
def test_pieces_hold_the_prompt_within_the_bounds(repetition: int) -> None:
    captured = random.sample(range(1, 600), random.randint(1, 60))
    length = random.randint(81, 2048)
    chunks = PaddedRule().split_into_chunks(length, captured, 2048) or []
    for chunk, following in pairwise(chunks):
        assert chunk.key > 80 and chunk.end == following.start
    if chunks:
        assert len(chunks) <= 8 and {chunk.key for chunk in chunks} <= set(captured)
        assert chunks[0].start == 0 and chunks[-1].start < length <= chunks[-1].end <= min(1.125 * length, 2048)


def test_pieces_are_used_and_their_length_is_worth_its_own_graph() -> None:
    cache = filled(PaddedRule(), [100, 200, 150])
    assert [chunk.key for chunk, _ in cache.look_up_chunks(400) or []] == [200, 200]
    assert cache.lengths == [100, 150, 200]
    cache.served(400, 200, "chunked")
    assert cache.next_wanted() == 400
    assert filled(ExactRule(), [100, 200]).look_up_chunks(400) is None


def test_a_padded_length_is_worth_an_exact_graph() -> None:
    cache = filled(PaddedRule(), [100, 200])
    cache.served(95, 100, "padded")
    cache.served(100, 100, "exact")
    assert [cache.next_wanted(), cache.next_wanted()] == [95, None]


def test_length_that_is_excluded_is_not_wanted_again() -> None:
    cache = filled(PaddedRule(), [100])
    cache.served(95, 100, "padded")
    cache.exclude(95)
    cache.served(95, 100, "padded")
    assert cache.next_wanted() is None


def test_least_recently_used_leaves_first() -> None:
    cache = filled(ExactRule(), [1, 2, 3], max_graphs=3)
    cache.look_up(1)
    assert cache.insert(4, "graph 4") == ["graph 2"]
    assert cache.lengths == [3, 1, 4]
    assert cache.counters["evicted"] == 1


def test_a_budget_in_mib_evicts_until_it_fits() -> None:
    cache: GraphCache[str] = GraphCache(ExactRule(), max_graphs=50, max_length=512, max_mib=100)
    for length in (1, 2, 3):
        cache.insert(length, str(length), mib=40)
    assert cache.lengths == [2, 3]
    assert cache.insert(4, "4", mib=500) == ["2", "3"], "the newest stays even alone over budget"


@pytest.mark.parametrize(("max_mib", "wanted"), [(None, 95), (125, 95), (115, None)])
def test_nothing_is_captured_that_would_cost_the_pool_a_graph_it_needs(max_mib: float | None, wanted: int) -> None:
    cache: GraphCache[str] = GraphCache(PaddedRule(), max_graphs=50, max_length=512, max_mib=max_mib)
    for length in (100, 200, 300):
        cache.insert(length, str(length), mib=30)
    cache.served(95, 100, "padded")
    assert cache.next_wanted() == wanted


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
    assert cache.counters["captured"] == 1


def test_replacing_a_graph_returns_the_old_one() -> None:
    cache = filled(ExactRule(), [5])
    assert cache.insert(5, "new") == ["graph 5"]
    assert cache.look_up(5) == (5, "new")
    assert cache.clear() == ["new"]
    assert len(cache) == 0


@pytest.mark.parametrize("num_lengths", [11, 20, 46])
def test_predictions_do_not_drive_out_the_graphs_in_use(num_lengths: int) -> None:
    cache = filled(ExactRule(), list(range(1, 51)), max_graphs=50)
    lengths = random.sample(range(1, 500), num_lengths)
    hits = 0
    for number in range(10):
        for length in lengths:
            found = cache.look_up(length)
            hits += found is not None and number > 0
            if found is None:
                cache.insert(length, f"graph {length}")
            cache.served(length, length, "captured" if found is None else "exact")
            while (wanted := cache.next_wanted()) is not None:
                cache.insert(wanted, f"graph {wanted}")
    assert hits == 9 * num_lengths


def test_predictions_run_ahead_of_lengths_that_grow() -> None:
    cache = filled(ExactRule(), list(range(1, 51)), max_graphs=50)
    for length in range(1, 500):
        assert cache.look_up(length) is not None
        cache.served(length, length, "exact")
        while (wanted := cache.next_wanted()) is not None:
            cache.insert(wanted, f"graph {wanted}")
