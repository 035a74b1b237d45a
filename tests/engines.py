"""What the tests of the engine share: the cases' engines, and answers of ``generate()`` to compare theirs with."""

import time
from collections.abc import Callable
from functools import partial

from architectures import without_ties

from hybridgraph.contract import Report, Request, TokenSource
from hybridgraph.engine.engine import HybridEngine
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.models.loading import LoadedModel
from hybridgraph.sources.huggingface import HuggingFaceSource

Ids = Callable[[int, int], list[int]]

CASE2 = EngineOptions(ops="native", graphs="exact", precapture=tuple(range(1, 51)))
CASE3 = EngineOptions(ops="torchscript", graphs="none")
CASE4 = EngineOptions(ops="torchscript", graphs="padded")


def open_engine(loaded: LoadedModel, options: EngineOptions) -> HybridEngine:
    return HybridEngine(loaded, options, loaded.info())


def wait_until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answer_of(source: TokenSource, prompt: list[int], new_tokens: int) -> tuple[list[int], Report]:
    """The greedy answer of any source, and its report."""
    ids: list[int] = []
    report = source.stream(Request(prompt_ids=prompt, max_new_tokens=new_tokens, temperature=0.0), ids.append)
    return ids, report


def greedy(source: TokenSource, prompt: list[int], new_tokens: int) -> list[int]:
    return answer_of(source, prompt, new_tokens)[0]


def path_of(source: TokenSource, prompt: list[int]) -> str | None:
    """The graph path of one more answer."""
    return answer_of(source, prompt, 1)[1].graph_path


def prompt_and_answer(
    loaded: LoadedModel, random_ids: Ids, length: int, new_tokens: int
) -> tuple[list[int], list[int]]:
    """A fresh prompt, and what ``generate()`` answers."""
    baseline = HuggingFaceSource(loaded, loaded.info())
    return without_ties(
        loaded.module,
        partial(random_ids, length, loaded.vocab_size),
        lambda prompt: greedy(baseline, prompt, new_tokens),
    )
