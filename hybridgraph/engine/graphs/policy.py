"""Which graph serves which length, which one has to go, and which one to capture next. Plain Python."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hybridgraph.contract import GRAPH_PATHS, GraphPath

Graph = TypeVar("Graph")

SUCCESSORS = 4  # how far ahead of a length in use the exact rule predicts
RECENT_LENGTHS = 64  # lengths a rule remembers to capture

# Padding bounds. Above 80 tokens a prefill's cost follows its length, so waste is bounded by a share;
# below, the weights dominate it and only gross padding (more than 2 x) costs anything; of few tokens not even that.
FLAT_LENGTH = 80
FEW_TOKENS = 16
MAX_WASTE = 1 / 8
# A long prompt in chunks reads the weights once for each: chunks that fill the chip cost little more than the whole.
MAX_CHUNKS = 8


@dataclass(frozen=True)
class Chunk:
    """A part of a prompt, from its id ``start`` on, and the captured length ``key`` that runs it."""

    start: int
    key: int

    @property
    def end(self) -> int:
        return self.start + self.key


class Rule(Protocol):
    """How lengths map to graphs."""

    @property
    def name(self) -> str: ...

    def serving(self, length: int, captured: Collection[int]) -> int | None:
        """The captured length that serves ``length``, or None."""
        ...

    def split_into_chunks(self, length: int, captured: Collection[int], max_length: int) -> list[Chunk] | None:
        """The chunks in which graphs of ``captured`` serve ``length`` that none serves whole, or None."""
        ...

    def worth_capturing(self, length: int, served_by: int) -> list[int]:
        """Lengths to capture in the background now that ``length`` was served by a graph of ``served_by``."""
        ...

    def victim(self, captured: Sequence[int], served: Collection[int]) -> int | None:
        """Of ``captured``, least recently used first: the one that may go for another made in the background, or None.

        The last one has just come and stays. ``served``: those that have served a request.
        """
        ...


class ExactRule:
    """A graph serves its own length. The successors of a length in use are expected next."""

    name = "exact"

    def serving(self, length: int, captured: Collection[int]) -> int | None:
        return length if length in captured else None

    def split_into_chunks(self, length: int, captured: Collection[int], max_length: int) -> list[Chunk] | None:
        return None

    def worth_capturing(self, length: int, served_by: int) -> list[int]:
        return [length + ahead for ahead in range(1, SUCCESSORS + 1)]

    def victim(self, captured: Sequence[int], served: Collection[int]) -> int | None:
        """A prediction that nothing has come of, where there are several; what has served goes for a few of them only.

        Otherwise the successors of ten lengths would drive each other's graphs out of a pool of fifty.
        """
        predicted = [key for key in captured[:-1] if key not in served]
        if len(predicted) >= SUCCESSORS:
            return predicted[0]
        return next((key for key in captured[:-1] if key in served), None)


class PaddedRule:
    """A graph serves the lengths up to its own, within the padding bounds; what was padded is worth an exact graph."""

    name = "padded"

    def serving(self, length: int, captured: Collection[int]) -> int | None:
        if length in captured:
            return length
        longest = max(FEW_TOKENS, 2 * length) if length <= FLAT_LENGTH else int(length * (1 + MAX_WASTE))
        return min((key for key in captured if length <= key <= longest), default=None)

    def split_into_chunks(self, length: int, captured: Collection[int], max_length: int) -> list[Chunk] | None:
        """Full chunks, the longest first, until the rest fits a graph; padding is bounded as for one graph."""
        longest_end = min(int(length * (1 + MAX_WASTE)), max_length)
        chunks: list[Chunk] = []
        start = 0
        while len(chunks) < MAX_CHUNKS:
            rest = length - start
            last = min((key for key in captured if rest <= key <= longest_end - start), default=None)
            full = max((key for key in captured if FLAT_LENGTH < key < rest), default=None)
            if last is not None:
                return [*chunks, Chunk(start, last)]
            if full is None:
                break
            chunks.append(Chunk(start, full))
            start += full
        return None

    def worth_capturing(self, length: int, served_by: int) -> list[int]:
        return [length] if served_by != length else []

    def victim(self, captured: Sequence[int], served: Collection[int]) -> int | None:
        return next((key for key in captured[:-1] if self.is_redundant(key, captured)), None)

    def is_redundant(self, key: int, captured: Collection[int]) -> bool:
        """Whether the graphs of ``captured`` serve every length that the one of ``key`` serves, without it."""
        others = [other for other in captured if other != key]
        shortest_served = max((other for other in others if other < key), default=0) + 1
        # Within one bound padding weighs most on the shortest length: if that has another graph, the rest have too.
        hardest = {shortest_served} | ({FLAT_LENGTH + 1} if shortest_served <= FLAT_LENGTH < key else set())
        return all(self.serving(length, others) is not None for length in hardest)


RULES: dict[str, Rule] = {rule.name: rule for rule in (ExactRule(), PaddedRule())}


# How requests were served; graphs captured in the background, taken out of the pool, and not captured for an error.
COUNTED = (*GRAPH_PATHS, "background", "evicted", "failed")


class GraphCache(Generic[Graph]):
    """The rolling pool under a budget in graphs and one in MiB.

    The least recently used graph leaves first, among those that the rule can do without: an exact graph made in the
    background must not cost another length the only graph it could be padded to, nor a prediction what is in use.

    Not thread-safe by itself: the engine's lock guards it, because freeing a graph must wait for its replay anyway.
    """

    def __init__(self, rule: Rule, *, max_graphs: int, max_length: int, max_mib: float | None = None) -> None:
        self.rule = rule
        self.counters = Counter(dict.fromkeys(COUNTED, 0))
        self._max_graphs = max_graphs
        self._max_length = max_length
        self._max_mib = max_mib
        self._graphs: OrderedDict[int, Graph] = OrderedDict()
        self._mib: dict[int, float] = {}
        self._wanted: OrderedDict[int, None] = OrderedDict()
        self._served: set[int] = set()  # graphs that have served a request since they came
        self._excluded: set[int] = set()

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def lengths(self) -> list[int]:
        """Captured lengths, least recently used first."""
        return list(self._graphs)

    def look_up(self, length: int) -> tuple[int, Graph] | None:
        """The graph that serves ``length`` and its own length; it becomes the most recently used one."""
        key = self.rule.serving(length, self._graphs)
        if key is None:
            return None
        self._graphs.move_to_end(key)
        return key, self._graphs[key]

    def look_up_chunks(self, length: int) -> list[tuple[Chunk, Graph]] | None:
        """As ``look_up``, for a length that no graph serves whole."""
        chunks = self.rule.split_into_chunks(length, self._graphs, self._max_length)
        if chunks is None:
            return None
        for chunk in chunks:
            self._graphs.move_to_end(chunk.key)
        return [(chunk, self._graphs[chunk.key]) for chunk in chunks]

    def served(self, length: int, key: int, path: GraphPath) -> None:
        """Count an answer, and remember what it makes worth capturing (what was wanted last is captured first)."""
        self.counters[path] += 1
        self._served.add(key)
        for other in reversed(self.rule.worth_capturing(length, key)):
            if other <= self._max_length and other not in self._graphs and other not in self._excluded:
                self._wanted[other] = None
                self._wanted.move_to_end(other)
        while len(self._wanted) > RECENT_LENGTHS:
            self._wanted.popitem(last=False)

    def exclude(self, length: int) -> None:
        """Never want ``length`` again: its capture failed, and the next attempt would cost as much."""
        self._excluded.add(length)
        self._wanted.pop(length, None)

    def insert(self, length: int, graph: Graph, mib: float = 0.0) -> list[Graph]:
        """Add a graph as the most recently used one; returns those that had to leave, for the caller to free."""
        replaced = [self._graphs.pop(length)] if length in self._graphs else []
        self._graphs[length] = graph
        self._mib[length] = mib
        self._wanted.pop(length, None)
        evicted = []
        while len(self._graphs) > 1 and self._over_budget():
            evicted.append(self.evict())
        return replaced + [old for old in evicted if old is not None]

    def evict(self) -> Graph | None:
        """Take out the graph that the rule can do without, or the least recently used one; None of an empty pool."""
        if not self._graphs:
            return None
        length = self._victim() or next(iter(self._graphs))
        graph = self._graphs.pop(length)
        self._mib.pop(length, None)
        self._served.discard(length)
        self.counters["evicted"] += 1
        return graph

    @property
    def has_wanted(self) -> bool:
        """Whether ``next_wanted`` has anything to select from."""
        return bool(self._wanted)

    def next_wanted(self) -> int | None:
        """The length to capture next, taken off the list; None where nothing is worth its place in the pool."""
        if self._is_full() and self._victim() is None:
            self._wanted.clear()  # what is wanted again may find another pool
            return None
        while self._wanted:
            length, _ = self._wanted.popitem(last=True)
            if length not in self._graphs:
                return length
        return None

    def _victim(self) -> int | None:
        return self.rule.victim(list(self._graphs), self._served)

    def clear(self) -> list[Graph]:
        """Take every graph out, uncounted: the pool is closing."""
        graphs = list(self._graphs.values())
        self._graphs.clear()
        self._mib.clear()
        self._wanted.clear()
        return graphs

    def _is_full(self) -> bool:
        """Whether one more, of the mean size of those that are here, would be over budget."""
        total, num = sum(self._mib.values()), len(self._graphs)
        mean = total / num if num else 0.0
        return num >= self._max_graphs or (self._max_mib is not None and total + mean > self._max_mib)

    def _over_budget(self) -> bool:
        if len(self._graphs) > self._max_graphs:
            return True
        return self._max_mib is not None and sum(self._mib.values()) > self._max_mib
