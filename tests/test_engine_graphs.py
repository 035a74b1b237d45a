"""The rolling pool in an engine: captures in the background, out of memory, lengths that have no graph yet."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from engines import Ids, answer_of, greedy, open_engine, path_of, prompt_and_answer, wait_until

from hybridgraph.engine.engine import HybridEngine
from hybridgraph.engine.graphs.capture import CapturedGraph, EmulatedGraphs
from hybridgraph.engine.graphs.lock import EngineLock
from hybridgraph.engine.graphs.pool import CAPTURING
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.errors import UserError
from hybridgraph.models.loading import LoadedModel

Call = Callable[[], None]


@pytest.fixture
def before_capture(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What is called before every capture from now on; it may raise in the capture's place."""
    calls: list[Call] = []
    capture = EmulatedGraphs.capture

    def capture_later(self: EmulatedGraphs, warm_up: Call, run: Call) -> CapturedGraph:
        for call in list(calls):
            call()
        return capture(self, warm_up, run)

    monkeypatch.setattr(EmulatedGraphs, "capture", capture_later)
    return calls


def failing(times: int) -> Call:
    """Run out of memory so many times, as the allocator reports it."""
    left = [times]

    def fail() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError("out of memory")

    return fail


def uncapturable(times: int) -> Call:
    """Fail so many times, as CUDA does where a forward waits for the device."""
    left = [times]

    def fail() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    return fail


def test_forward_that_cannot_be_captured_as_it_is_proven_is_opened_in_its_other_form(
    loaded: LoadedModel, random_ids: Ids, before_capture: list[Call]
) -> None:
    prompt, expected = prompt_and_answer(loaded, random_ids, 15, 4)
    before_capture.append(uncapturable(1))
    with open_engine(loaded, EngineOptions(ops="native", precapture=(20,), async_capture=False)) as engine:
        assert greedy(engine, prompt, 4) == expected


def test_forward_that_cannot_be_captured_is_refused(loaded: LoadedModel, before_capture: list[Call]) -> None:
    before_capture.append(uncapturable(100))
    with pytest.raises(UserError, match=r"cannot be captured \(.*is capturing\): Cases 1 and 3 measure this model"):
        open_engine(loaded, EngineOptions(ops="native"))


def test_decode_while_the_background_captures_stays_identical(
    loaded: LoadedModel, random_ids: Ids, before_capture: list[Call]
) -> None:
    prompt = random_ids(23, 500)
    with open_engine(loaded, EngineOptions(ops="native", async_capture=False)) as quiet:
        expected = list(quiet.generate(prompt, 200))
    with open_engine(loaded, EngineOptions(ops="native", max_graphs=8, precapture=(30, 60, 120))) as engine:
        may_capture = threading.Event()

        def wait() -> None:
            may_capture.wait(60)

        before_capture.append(wait)
        for length in (23, 57, 111):
            may_capture.clear()
            assert path_of(engine, random_ids(length, 500)) == "padded"  # the background wants a graph of its own
            answer = engine.generate(prompt, 200)
            first = next(answer)
            assert engine.is_capturing
            may_capture.set()
            assert [first, *answer] == expected
            wait_until(lambda: not engine.is_capturing)
        assert engine.stats()["counters"]["background"] == 3


def test_request_takes_the_graph_that_is_being_captured_for_it(
    loaded: LoadedModel, random_ids: Ids, before_capture: list[Call]
) -> None:
    options = EngineOptions(ops="native", graphs="exact", precapture=(1,), max_graphs=9)
    prompt, expected = prompt_and_answer(loaded, random_ids, 11, 3)
    with open_engine(loaded, options) as engine:
        may_capture = threading.Event()

        def wait_in_background() -> None:
            if threading.current_thread() is not threading.main_thread():
                may_capture.wait(60)

        before_capture.append(wait_in_background)
        list(engine.generate(random_ids(10, 500), 1))  # its successors are captured next: 11 first
        wait_until(lambda: engine.is_capturing and CAPTURING.locked())
        threading.Timer(0.2, may_capture.set).start()
        assert greedy(engine, prompt, 3) == expected
        wait_until(lambda: not engine.is_capturing)
        captured = engine.stats()
        assert captured["captures"] == 1 + 1 + captured["graphs_held"] - 1, "decode, and each graph once"


def test_capture_that_fails_in_the_background_is_not_tried_again(
    loaded: LoadedModel, random_ids: Ids, before_capture: list[Call]
) -> None:
    prompt, expected = prompt_and_answer(loaded, random_ids, 15, 4)
    with open_engine(loaded, EngineOptions(ops="native", precapture=(10, 20))) as engine:
        before_capture.append(failing(1))
        for _ in range(3):
            assert greedy(engine, prompt, 4) == expected
            wait_until(lambda: not engine.is_capturing)
        assert engine.stats()["counters"] | {"padded": 3, "failed": 1, "background": 0} == engine.stats()["counters"]


@pytest.mark.parametrize(("failures", "path"), [(1, "captured"), (2, "eager")])
def test_capture_out_of_memory_evicts_and_serves(
    loaded: LoadedModel, random_ids: Ids, before_capture: list[Call], failures: int, path: str
) -> None:
    prompt = random_ids(40, 500)
    options = EngineOptions(ops="native", graphs="exact", precapture=(1, 2, 3, 4), async_capture=False)
    with open_engine(loaded, options) as engine:
        expected = list(engine.generate(prompt, 4))
        before_capture.append(failing(failures))
        other = prompt[:-1]
        answer, report = answer_of(engine, other, 4)
        assert report.graph_path == path
        assert engine.stats()["counters"]["evicted"] >= 2
        assert engine.stats()["counters"]["failed"] == failures
        assert answer == list(engine.generate(other, 4))
        assert engine.stats()["counters"]["failed"] == failures, "what failed is not tried again at the others' cost"
        assert list(engine.generate(prompt, 4)) == expected


def test_lengths_beyond_the_largest_graph_roll_through_the_pool(loaded: LoadedModel, random_ids: Ids) -> None:
    options = EngineOptions(ops="native", precapture=(10, 20), max_graphs=3, positions=256, async_capture=False)
    with open_engine(loaded, options) as engine:
        for length in (200, 150, 250, 200, 100):
            prompt, expected = prompt_and_answer(loaded, random_ids, length, 3)
            assert greedy(engine, prompt, 3) == expected
        assert engine.stats()["graphs_held"] == 3
        assert engine.stats()["counters"]["captured"] == 4


def test_forward_without_chunks_has_a_long_prompt_captured(loaded: LoadedModel, random_ids: Ids) -> None:
    options = EngineOptions(ops="native", precapture=(30, 90), positions=256, async_capture=False)
    with open_engine(loaded, options) as engine:
        assert path_of(engine, random_ids(200, 500)) == "captured"


def test_lock_whose_device_cannot_be_entered_or_left_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = EngineLock(torch.device("cpu"))

    @contextmanager
    def on_a_broken_device(_: torch.device) -> Iterator[None]:
        if broken == "entering":
            raise RuntimeError(broken)
        yield
        raise RuntimeError(broken)

    monkeypatch.setattr("hybridgraph.engine.graphs.lock.on_device", on_a_broken_device)
    for broken in ("entering", "leaving"):
        with pytest.raises(RuntimeError, match=broken), lock:
            pass
        assert lock.against_requests.acquire(blocking=False)
        lock.against_requests.release()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("forward", ["hf", "fused"])
def test_engine_on_another_gpu_than_the_current_one_answers_as_there(forward: str, random_ids: Ids) -> None:
    answers = []
    prompts = [random_ids(length, 2000) for length in (9, 9, 25, 25, 70)]
    for device in ("cuda:0", "cuda:1"):
        with HybridEngine.from_pretrained(
            "tiny-llama", load_format="dummy", device=device, forward=forward, ops="fused", precapture=(16, 32)
        ) as engine:
            answers.append([list(engine.generate(prompt, 8)) for prompt in prompts])
            wait_until(lambda engine=engine: not engine.is_capturing)
            assert engine.stats()["counters"]["background"] > 0
            answers[-1] += [list(engine.generate(prompt, 8)) for prompt in prompts]
        assert torch.cuda.current_device() == 0
    assert answers[0] == answers[1]
