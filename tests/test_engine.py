"""The engine as a user has it: requests and options, one answer at a time, cancelled, dropped, closed."""

import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import CASE3, CASE4, Ids, answer_of, open_engine, wait_until

from hybridgraph.contract import GRAPH_PATHS, Request
from hybridgraph.engine.engine import HybridEngine
from hybridgraph.engine.graphs.capture import EmulatedGraph
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.errors import UserError
from hybridgraph.models.loading import LoadedModel, load_model
from hybridgraph.models.shapes import builtin_config

ROOT = Path(__file__).resolve().parent.parent


# --- requests and options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "complaint"),
    [
        ([], 1, "empty"),
        ([500], 1, "token id 500 is outside the vocabulary of 500"),
        ([-1], 1, "token id -1"),
        ([1] * 510, 3, "exceed the 512 positions"),
        ([1], 0, "max_new_tokens 0"),
    ],
)
def test_request_that_cannot_be_answered_is_told_in_one_line(
    loaded: LoadedModel, prompt: list[int], new_tokens: int, complaint: str
) -> None:
    engine = open_engine(loaded, CASE3)
    request = Request(prompt_ids=prompt, max_new_tokens=new_tokens)
    for ask in (lambda: engine.generate(prompt, new_tokens), lambda: engine.stream(request, print)):
        with pytest.raises(UserError, match=complaint) as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("temperature", [1e-39, 1e-6, -1.0, 101.0, float("nan"), float("inf")])
def test_temperature_that_float32_cannot_divide_by_is_refused(loaded: LoadedModel, temperature: float) -> None:
    with pytest.raises(UserError, match="temperature"):
        open_engine(loaded, CASE3).generate([1], 1, temperature=temperature)
    assert len(list(open_engine(loaded, CASE3).generate([1], 2, temperature=1e-3))) == 2


@pytest.mark.parametrize(
    "arguments",
    [(["1"], 2), (None, 2), ([1.5], 2), (torch.zeros(2, 2, dtype=torch.int64), 2), ([1], 2.5), ([1], None)],
    ids=str,
)
def test_generate_of_what_is_no_request_is_told_in_one_line(loaded: LoadedModel, arguments: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="no request") as error:
        open_engine(loaded, CASE3).generate(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"forward": "x"},
        {"graphs": "x"},
        {"max_graphs": 0},
        {"positions": 0},
        {"positions": 1 << 21},
        {"max_graphs": "5"},
        {"max_graph_mib": -1},
        {"positions": 64.0},
        {"precapture": (3, 0)},
        {"precapture": (3, 600)},
        {"precapture": (3, 10.5)},
        {"precapture": "10,20"},
        {"precapture": 10},
        {"precapture": range(1, 52)},
        {"ops": "x"},
    ],
    ids=str,
)
def test_options_that_no_engine_can_have_are_refused(loaded: LoadedModel, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        open_engine(loaded, EngineOptions(**options))


def test_lengths_by_default_are_those_that_fit(loaded: LoadedModel) -> None:
    options = EngineOptions(ops="native", positions=64, max_graphs=4)
    assert options.lengths == (10, 20, 30, 40)
    assert EngineOptions(precapture={16, 8}).lengths == EngineOptions(precapture=[16, 8, 8]).lengths == (8, 16)
    with open_engine(loaded, options) as engine:
        assert engine.stats()["captures"] == 4 + 1  # the decode step's


@pytest.mark.parametrize("forward", ["hf", "fused"])
def test_engine_opened_in_inference_mode_answers_outside_and_in_other_threads(tmp_path: Path, forward: str) -> None:
    def opened() -> HybridEngine:
        return HybridEngine.from_pretrained(
            tmp_path, load_format="dummy", dtype="float32", device="cpu", ops="native", forward=forward, precapture=(8,)
        )

    (tmp_path / "config.json").write_text(json.dumps(builtin_config("tiny-llama")))
    with opened() as engine:
        expected = list(engine.generate([1, 2, 3], 4))
    with torch.inference_mode():
        engine = opened()
        assert list(engine.generate([1, 2, 3], 4)) == expected
    with engine:
        assert list(engine.generate([1, 2, 3], 4)) == expected
        in_thread: list[int] = []
        thread = threading.Thread(target=lambda: in_thread.extend(engine.generate([1, 2, 3], 4)))
        thread.start()
        thread.join()
        assert in_thread == expected


# --- the two ways to read an answer -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [CASE3, CASE4], ids=["no graphs", "graphs"])
def test_generate_yields_what_stream_emits(loaded: LoadedModel, random_ids: Ids, options: EngineOptions) -> None:
    prompt = random_ids(9, 500)
    with open_engine(loaded, options) as engine:
        emitted, report = answer_of(engine, prompt, 12)
        assert list(engine.generate(prompt, 12)) == emitted
        assert report.graph_path == ("eager" if options is CASE3 else "padded")
        assert report.overflowed is False


def test_generate_begins_when_it_is_first_read(loaded: LoadedModel) -> None:
    with open_engine(loaded, CASE4) as engine:
        unread = engine.generate([1, 2, 3], 4)
        assert len(list(engine.generate([1, 2, 3], 4))) == len(list(unread)) == 4


@pytest.mark.parametrize("stop_at", [1, 3, 12])
def test_stream_whose_emit_raises_is_cancelled(loaded: LoadedModel, random_ids: Ids, stop_at: int) -> None:
    prompt, other = random_ids(9, 500), random_ids(30, 500)
    with open_engine(loaded, CASE4) as engine:
        expected = list(engine.generate(prompt, 12))
        emitted: list[int] = []

        def emit(token: int) -> None:
            emitted.append(token)
            if len(emitted) == stop_at:
                raise InterruptedError("seen enough")

        with pytest.raises(InterruptedError, match="seen enough"):
            engine.stream(Request(prompt_ids=other, max_new_tokens=12), emit)
        assert len(emitted) == stop_at
        assert list(engine.generate(prompt, 12)) == expected
        assert sum(engine.stats()["counters"][path] for path in GRAPH_PATHS) == 3, "a cancelled answer is counted"


def test_generate_that_is_closed_leaves_the_engine_usable(loaded: LoadedModel, random_ids: Ids) -> None:
    prompt = random_ids(9, 500)
    with open_engine(loaded, CASE4) as engine:
        expected = list(engine.generate(prompt, 12))
        answer = engine.generate(random_ids(30, 500), 40)
        next(answer)
        answer.close()
        assert list(engine.generate(prompt, 12)) == expected


@pytest.mark.parametrize("graphs", ["padded", "none"])
def test_second_answer_during_the_first_is_refused(loaded: LoadedModel, random_ids: Ids, graphs: str) -> None:
    prompt = random_ids(9, 500)
    with open_engine(loaded, EngineOptions(ops="native", graphs=graphs, precapture=(10,))) as engine:
        expected = list(engine.generate(prompt, 6))
        first = engine.generate(prompt, 6)
        got = [next(first)]
        with pytest.raises(UserError, match="another answer is in progress"):
            next(engine.generate(prompt[:3], 2))
        assert got + list(first) == expected
        with pytest.raises(UserError, match="another answer is in progress"):
            engine.stream(Request(prompt_ids=prompt), lambda _: answer_of(engine, prompt, 1))
        assert list(engine.generate(prompt, 6)) == expected


def test_half_read_answer_may_end_on_any_thread(loaded: LoadedModel, random_ids: Ids) -> None:
    """As Python's collector ends one that was dropped: on the thread that it happens to run in."""
    with open_engine(loaded, EngineOptions(ops="native", precapture=(10, 20))) as engine:
        half_read = [engine.generate(random_ids(9, 500), 6)]
        next(half_read[0])
        elsewhere = threading.Thread(target=half_read.clear)
        elsewhere.start()
        elsewhere.join()
        list(engine.generate(random_ids(15, 500), 2))
        wait_until(lambda: engine.stats()["counters"]["background"] == 2)


# --- what surrounds an answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [CASE3, CASE4], ids=["no graphs", "graphs"])
def test_answer_within_autocast_is_refused_at_its_start(loaded: LoadedModel, options: EngineOptions) -> None:
    with open_engine(loaded, options) as engine:
        expected = list(engine.generate([1, 2, 3], 4))
        with torch.autocast("cpu", torch.bfloat16):
            for ask in (lambda: next(engine.generate([1, 2, 3], 4)), lambda: answer_of(engine, [1, 2, 3], 4)):
                with pytest.raises(UserError, match=r"torch\.autocast is on for cpu"):
                    ask()
            with pytest.raises(UserError, match=r"torch\.autocast is on for cpu"):
                open_engine(loaded, options)
        assert list(engine.generate([1, 2, 3], 4)) == expected


def test_answer_that_is_read_on_within_autocast_is_refused(loaded: LoadedModel) -> None:
    engine = open_engine(loaded, CASE3)
    expected = list(engine.generate([1, 2, 3], 4))
    answer = engine.generate([1, 2, 3], 4)
    next(answer)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match=r"torch\.autocast is on for cpu"):
        next(answer)
    assert list(engine.generate([1, 2, 3], 4)) == expected


def test_answer_where_defaults_of_torch_are_others_is_the_same(loaded: LoadedModel) -> None:
    """What else surrounds a call from outside: where tensors are made by default, and of which type."""
    with open_engine(loaded, CASE3) as case3, open_engine(loaded, CASE4) as case4:
        expected = list(case3.generate([1, 2, 3], 4))
        torch.set_default_dtype(torch.float64)
        try:
            for engine in (case3, case4):
                with torch.device("meta"), torch.enable_grad():
                    assert list(engine.generate([1, 2, 3], 4)) == expected
        finally:
            torch.set_default_dtype(torch.float32)


OVERFLOWING = 7  # the id whose embedding float16 cannot be computed with


def overflowing_model(seed: int = 3) -> LoadedModel:
    loaded = load_model("tiny-llama", load_format="dummy", dtype="float16", device=torch.device("cpu"), seed=seed)
    with torch.no_grad():
        loaded.module.get_input_embeddings().weight[OVERFLOWING] = 65504.0
        loaded.module.model.layers[0].self_attn.o_proj.weight.mul_(1000)
    return loaded


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_generate_of_logits_that_are_not_finite_raises_at_its_end(new_tokens: int) -> None:
    with open_engine(overflowing_model(), EngineOptions(positions=128, precapture=(8,))) as engine:
        read: list[int] = []
        with pytest.raises(UserError, match=r"not finite in float16.*try another dtype"):
            for token in engine.generate([1, OVERFLOWING, 3], new_tokens):
                read.append(token)
        assert len(read) == new_tokens
        assert engine.stats()["overflowed_answers"] == 1
        assert len(list(engine.generate([1, 2, 3], new_tokens))) == new_tokens


@pytest.mark.parametrize("forward", ["hf", "fused"])
@pytest.mark.parametrize("uploads", [True, False])
def test_answer_that_overflows_does_not_spoil_the_next(
    forward: str, uploads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a capture behind it, which runs on the prompt that is still there where the driver cannot upload."""
    monkeypatch.setattr(EmulatedGraph, "upload", lambda graph: uploads)
    with open_engine(overflowing_model(), EngineOptions(forward=forward, positions=128)) as engine:
        good = list(engine.generate([1, 2, 3, 4], 6))
        assert engine.stats()["overflowed_answers"] == 0
        for number in range(1, 4):
            prompt, finite = [1] * 20 + [OVERFLOWING] + [1] * 20, []
            logits = engine.shared_tensors()["logits"]

            def emit(_: int, finite: list[bool] = finite, logits: torch.Tensor = logits) -> None:
                finite.append(bool(logits.isfinite().all()))

            report = engine.stream(Request(prompt_ids=prompt, max_new_tokens=2), emit)
            assert finite == [False, False], "it did overflow"
            assert report.overflowed
            wait_until(lambda: not engine.is_capturing)
            answer, report = answer_of(engine, [1, 2, 3, 4], 6)
            assert (answer, report.overflowed) == (good, False), number
            assert engine.stats()["overflowed_answers"] == number
            wait_until(lambda: not engine.is_capturing)


# --- the engine's end ---------------------------------------------------------------------------------------------


def test_engine_that_is_closed_answers_nothing(loaded: LoadedModel, random_ids: Ids) -> None:
    with open_engine(loaded, EngineOptions(ops="native", precapture=(10, 20))) as engine:
        engine.generate(random_ids(15, 500), 2).close()
        list(engine.generate(random_ids(15, 500), 2))  # padded: the background captures while the next one waits
        half_read = engine.generate(random_ids(9, 500), 6)
        next(half_read)
        never_read = engine.generate(random_ids(9, 500), 6)
    assert list(half_read) == []
    assert not engine.is_capturing
    asked: list[Callable[[], object]] = [
        lambda: next(never_read),
        lambda: next(engine.generate(random_ids(9, 500), 6)),
        lambda: answer_of(engine, random_ids(9, 500), 6),
        lambda: engine.replay_prefill(9),
        engine.replay_decode,
    ]
    for ask in asked:
        with pytest.raises(UserError, match="the engine is closed"):
            ask()


def test_engine_that_its_emit_closes_ends_the_answer(loaded: LoadedModel, random_ids: Ids) -> None:
    engine = open_engine(loaded, EngineOptions(ops="native", precapture=(10, 20)))
    with pytest.raises(UserError, match="the engine is closed"):
        engine.stream(Request(prompt_ids=random_ids(15, 500), max_new_tokens=4), lambda _: engine.close())


DROPPED = """
import gc, sys, time
from hybridgraph import HybridEngine

def use():
    engine = HybridEngine.from_pretrained(
        "tiny-llama", load_format="dummy", dtype="float32", device="cpu", ops="native", precapture=(16, 32)
    )
    list(engine.generate([1] * 12, 1))
    half_read = engine.generate([1] * 13, 4)
    next(half_read)
    try:
        raise ValueError("the consumer failed")
    except ValueError as error:
        kept = error  # frame, exception, traceback, frame: the usual cycle
    time.sleep(0.3)
    assert engine.is_capturing, "it waits for the lock that the half-read answer holds"

before = sys.getswitchinterval()
use()
gc.collect()
deadline = time.monotonic() + 60
while sys.getswitchinterval() != before and time.monotonic() < deadline:
    time.sleep(0.01)
print("switches as before" if sys.getswitchinterval() == before else sys.getswitchinterval())
"""


def test_engine_that_is_dropped_with_a_half_read_answer_ends() -> None:
    """Python's collector ends the engine before the answer that holds the lock."""
    run = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert (run.returncode, run.stdout) == (0, "switches as before\n"), run.stderr


def test_engine_that_is_dropped_stops_capturing(loaded: LoadedModel) -> None:
    def capturing() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "background-capture"]

    others = capturing()
    engine = open_engine(loaded, EngineOptions(ops="native", precapture=(10,)))
    (thread,) = (thread for thread in capturing() if thread not in others)
    del engine
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_engine_that_is_closed_holds_nothing_that_only_the_collector_would_free(loaded: LoadedModel) -> None:
    engine = open_engine(loaded, EngineOptions(ops="native", forward="fused", precapture=(10,)))
    logits = weakref.ref(engine.shared_tensors()["logits"])
    gc.collect()
    gc.disable()
    try:
        engine.close()
        del engine
        assert logits() is None
    finally:
        gc.enable()


def test_interpreter_switches_quickly_until_the_last_engine_is_closed(loaded: LoadedModel) -> None:
    before = sys.getswitchinterval()
    first, second = (open_engine(loaded, EngineOptions(ops="native", precapture=(10,))) for _ in range(2))
    wait_until(lambda: sys.getswitchinterval() < before)
    first.close()
    assert sys.getswitchinterval() < before
    second.close()
    assert sys.getswitchinterval() == before
