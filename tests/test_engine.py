"""Every path of the engine gives the ids of the plain one; on a GPU within half precision's own error."""

import copy
import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from random import randint
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, SMALL, tiny_model, without_ties
from torch import Tensor
from transformers import AutoTokenizer

from hybridgraph.contract import Request
from hybridgraph.engine.engine import HybridEngine
from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.engine.graphs.capture import CudaGraphs, EmulatedGraph
from hybridgraph.engine.graphs.lock import Turn
from hybridgraph.engine.graphs.pool import CAPTURING
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.errors import UserError
from hybridgraph.kernels.reference import ReferenceKernels
from hybridgraph.models.loading import LoadedModel, load_model
from hybridgraph.models.shapes import builtin_config
from hybridgraph.sources.huggingface import HuggingFaceSource

ROOT = Path(__file__).resolve().parent.parent

Ids = Callable[[int, int], list[int]]

CASE2 = EngineOptions(ops="native", graphs="exact", precapture=tuple(range(1, 51)))
CASE3 = EngineOptions(ops="torchscript", graphs="none")
CASE4 = EngineOptions(ops="torchscript", graphs="padded")


def open_engine(loaded: LoadedModel, options: EngineOptions) -> HybridEngine:
    return HybridEngine(loaded, options, loaded.info())


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def greedy(source: HuggingFaceSource | HybridEngine, prompt: list[int], new_tokens: int) -> list[int]:
    answer: list[int] = []
    source.stream(Request(prompt_ids=prompt, max_new_tokens=new_tokens, temperature=0.0), answer.append)
    return answer


def prompt_and_answer(
    loaded: LoadedModel, random_ids: Ids, length: int, new_tokens: int
) -> tuple[list[int], list[int]]:
    """A fresh prompt, and what ``generate()`` answers."""
    baseline = HuggingFaceSource(loaded, loaded.info())
    return without_ties(
        loaded.module, partial(random_ids, length, 500), lambda prompt: greedy(baseline, prompt, new_tokens)
    )


@pytest.fixture(scope="module", params=["llama-mha", "llama-gqa", "llama-tied"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny_model(request.param, tmp_path_factory.mktemp(request.param))


def test_greedy_equals_generate_at_every_length(loaded: LoadedModel, random_ids: Ids) -> None:
    with open_engine(loaded, CASE2) as case2, open_engine(loaded, CASE4) as case4:
        for length in range(1, 131):
            prompt, expected = prompt_and_answer(loaded, random_ids, length, 41)
            assert greedy(case2, prompt, 41) == greedy(case4, prompt, 41) == expected
        for engine in (case2, case4):
            counters = engine.stats()["counters"]
            assert sum(counters[path] for path in ("exact", "padded", "captured", "eager")) == 130
            assert counters["failed"] == counters["eager"] == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_case3_equals_generate_over_64_tokens(name: str, tmp_path: Path, random_ids: Ids) -> None:
    loaded = tiny_model(name, tmp_path)
    source = open_engine(loaded, CASE3)
    for length in (1, 17, 64):
        prompt, expected = prompt_and_answer(loaded, random_ids, length, 64)
        assert greedy(source, prompt, 64) == expected


def test_architectures_without_rotary_embeddings_run_in_case3(tmp_path: Path, random_ids: Ids) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500, "n_positions": 256}'
    )
    loaded = load_model(str(tmp_path), load_format="dummy", dtype="float32", device=torch.device("cpu"), seed=1)
    source = open_engine(loaded, EngineOptions(ops="native", graphs="none", positions=256))
    prompt, expected = prompt_and_answer(loaded, random_ids, 20, 20)
    assert greedy(source, prompt, 20) == expected


BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500}
FALCON = {
    "model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500,
    "multi_query": True, "new_decoder_architecture": False,
}  # fmt: skip
GPT_NEO = {
    "model_type": "gpt_neo", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 500, "window_size": 16,
    "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128,
}  # fmt: skip
LONGROPE = SMALL | {
    "model_type": "llama",
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        (BLOOM, "does not run over static buffers"),
        (FALCON, "does not run over static buffers"),
        (GPT_NEO, "attends over a window of 16"),
        (LONGROPE, "rope scaling longrope"),
    ],
    ids=["bloom", "falcon", "gpt_neo", "longrope"],
)
def test_what_would_answer_otherwise_from_a_graph_is_refused(
    tmp_path: Path, numbers: dict[str, Any], complaint: str
) -> None:
    """The module's attention has a mask, a cache or a rotation of its own, which static buffers do not give it."""
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    loaded = load_model(str(tmp_path), load_format="dummy", dtype="float32", device=torch.device("cpu"), seed=1)
    for parameter in loaded.module.parameters():
        if parameter.dim() > 1:
            parameter.mul_(6.0)
    with pytest.raises(UserError, match=complaint) as error:
        open_engine(loaded, EngineOptions(ops="native", positions=128))
    assert "Cases 1 and 3 measure this model" in str(error.value)
    assert (
        len(list(open_engine(loaded, EngineOptions(ops="native", graphs="none", positions=128)).generate([5], 3))) == 3
    )


def test_a_wrong_rotation_is_noticed_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model("tiny-llama", load_format="dummy", dtype="float16", device=torch.device("cpu"), seed=0)
    open_engine(loaded, EngineOptions(forward="fused", graphs="none")).close()
    monkeypatch.setattr(ReferenceKernels, "_rotated", lambda self, rows, norm, eps, cos, sin: rows)
    with pytest.raises(UserError, match="the model's logits differ by"):
        open_engine(loaded, EngineOptions(forward="fused", graphs="none"))


def test_a_rounding_that_the_model_amplifies_for_one_prompt_is_no_fault(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_decode, calls = FusedForward.decode, count()

    def unlucky(self: FusedForward, token: Tensor, position: Tensor, cache: Any, logits: Tensor) -> None:
        run_decode(self, token, position, cache, logits)
        logits.mul_(1.1 if next(calls) < num_unlucky else 1.0)

    monkeypatch.setattr(FusedForward, "decode", unlucky)
    num_unlucky = 2
    open_engine(loaded, EngineOptions(forward="fused", graphs="none")).close()
    num_unlucky, calls = 3, count()
    with pytest.raises(UserError, match=r"the model's logits differ by 10\.0%: use --forward hf"):
        open_engine(loaded, EngineOptions(forward="fused", graphs="none"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_real_model_is_served_in_half_precision(trained: LoadedModel, dtype: torch.dtype) -> None:
    loaded = replace(trained, module=copy.deepcopy(trained.module).to(dtype), dtype=dtype)
    open_engine(loaded, EngineOptions(forward="fused", graphs="none")).close()


def test_real_model_answers_as_generate_does(trained: LoadedModel) -> None:
    baseline = HuggingFaceSource(trained, trained.info())
    case3 = open_engine(trained, CASE3)
    case2 = open_engine(trained, EngineOptions(ops="native", graphs="exact", precapture=(5,), async_capture=False))
    case4 = open_engine(trained, EngineOptions(ops="torchscript", precapture=(8, 16), async_capture=False))
    for number in range(5):
        prompt = [504 + (number * 7919 + i * 104729) % 40000 for i in range(5 + 4 * number)]
        expected = greedy(baseline, prompt, 64)
        assert greedy(case3, prompt, 64) == expected
        if number < 2:
            for engine in (case2, case4):
                assert greedy(engine, prompt, 40) == expected[:40]


def test_sampling_is_seeded_and_independent_of_the_graph(loaded: LoadedModel, random_ids: Ids) -> None:
    prompt = random_ids(13, 500)
    with open_engine(loaded, CASE4) as padded, open_engine(loaded, CASE2) as exact:
        answers = [list(e.generate(prompt, 24, temperature=0.7, seed=s)) for e in (padded, exact) for s in (5, 5, 6)]
    assert answers[0] == answers[1] == answers[3] == answers[4]
    assert answers[2] == answers[5] != answers[0]


def test_decode_stays_identical_while_the_background_captures(loaded: LoadedModel, random_ids: Ids) -> None:
    prompt = random_ids(23, 500)
    with open_engine(loaded, EngineOptions(ops="native", async_capture=False)) as quiet:
        expected = list(quiet.generate(prompt, 200))
    options = EngineOptions(ops="native", async_capture=False, max_graphs=8, precapture=(30, 60))
    with open_engine(loaded, options) as engine:
        assert engine._pool is not None
        for _ in range(3):
            capture = threading.Thread(target=engine._pool.capture_in_background, args=(57,))
            stream = engine.generate(prompt, 200)
            first = next(stream)
            capture.start()
            assert [first, *stream] == expected
            capture.join()
        assert engine.stats()["counters"]["background"] == 3


def test_stats_are_of_one_moment(loaded: LoadedModel) -> None:
    """What the background adds to the pool, it adds in its turn: counting waits for that."""
    with open_engine(loaded, EngineOptions(ops="native", async_capture=False, precapture=(10,))) as engine:
        assert engine._pool is not None
        told: list[dict[str, object]] = []
        asking = threading.Thread(target=lambda: told.append(engine.stats()))
        with engine._pool.turn.of_captures:
            asking.start()
            asking.join(0.2)
            assert asking.is_alive()
        asking.join(10.0)
        assert told[0]["captures"] == 2


def test_an_abandoned_answer_leaves_the_engine_usable(loaded: LoadedModel, random_ids: Ids) -> None:
    prompt = random_ids(9, 500)
    with open_engine(loaded, CASE4) as engine:
        expected = list(engine.generate(prompt, 12))
        stream = engine.generate(random_ids(30, 500), 40)
        next(stream)
        stream.close()
        assert list(engine.generate(prompt, 12)) == expected


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
def test_bad_requests_are_told_in_one_line(
    loaded: LoadedModel, prompt: list[int], new_tokens: int, complaint: str
) -> None:
    engine = open_engine(loaded, CASE3)
    with pytest.raises(UserError, match=complaint) as error:
        engine.generate(prompt, new_tokens)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("graphs", ["padded", "none"])
def test_one_answer_at_a_time(loaded: LoadedModel, random_ids: Ids, graphs: str) -> None:
    prompt = random_ids(9, 500)
    with open_engine(loaded, EngineOptions(ops="native", graphs=graphs, precapture=(10,))) as engine:
        expected = list(engine.generate(prompt, 6))
        first = engine.generate(prompt, 6)
        got = [next(first)]
        with pytest.raises(UserError, match="another answer is in progress"):
            next(engine.generate(prompt[:3], 2))
        assert got + list(first) == expected
        assert list(engine.generate(prompt, 6)) == expected


def test_a_closed_engine_answers_nothing(loaded: LoadedModel, random_ids: Ids) -> None:
    with open_engine(loaded, EngineOptions(ops="native", precapture=(10, 20))) as engine:
        engine.generate(random_ids(15, 500), 2).close()
        list(engine.generate(random_ids(15, 500), 2))  # padded: the background captures while the next one waits
        half_read = engine.generate(random_ids(9, 500), 6)
        next(half_read)
        never_read = engine.generate(random_ids(9, 500), 6)
    assert list(half_read) == []
    assert not engine.is_capturing
    for ask in (
        lambda: next(never_read),
        lambda: next(engine.generate(random_ids(9, 500), 6)),
        lambda: engine.replay_prefill(9),
        engine.replay_decode,
    ):
        with pytest.raises(UserError, match="the engine is closed"):
            ask()


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
    assert engine.is_capturing, "it waits for the turn that the half-read answer holds"

before = sys.getswitchinterval()
use()
gc.collect()
deadline = time.monotonic() + 20
while sys.getswitchinterval() != before and time.monotonic() < deadline:
    time.sleep(0.01)
print("switches as before" if sys.getswitchinterval() == before else sys.getswitchinterval())
"""


def test_an_engine_dropped_with_a_half_read_answer_ends() -> None:
    """Python's collector ends the engine before the answer that holds the turn."""
    run = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "switches as before\n"), run.stderr


def test_the_interpreter_switches_quickly_until_the_last_engine_is_closed(loaded: LoadedModel) -> None:
    before = sys.getswitchinterval()
    first, second = (open_engine(loaded, EngineOptions(ops="native", precapture=(10,))) for _ in range(2))
    wait_until(lambda: sys.getswitchinterval() < before)
    first.close()
    assert sys.getswitchinterval() < before
    second.close()
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("ops", ["native", "fused"])
def test_a_chunked_prefill_that_is_interrupted_changes_nothing_for_the_next(ops: str, random_ids: Ids) -> None:
    loaded = load_model("tiny-llama", load_format="dummy", dtype="float32", device=torch.device("cpu"), seed=0)
    options = EngineOptions(ops=ops, forward="fused", precapture=(64, 128, 500), async_capture=False, positions=600)
    prompt, long = random_ids(480, 2000), random_ids(300, 2000)
    with open_engine(loaded, options) as engine:
        expected = list(engine.generate(prompt, 4))
        assert engine._pool is not None
        static = engine._pool._static
        point_at, starts = static.point_at, []

        def interrupted(start: int, last: int) -> None:
            point_at(start, last)
            starts.append(start)
            if len(starts) == 2:
                raise KeyboardInterrupt

        static.point_at = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            list(engine.generate(long, 2))
        static.point_at = point_at  # type: ignore[method-assign]
        assert starts[1] > 0
        assert list(engine.generate(prompt, 4)) == expected


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("forward", ["hf", "fused"])
def test_an_engine_on_another_gpu_than_the_current_one(forward: str, random_ids: Ids) -> None:
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


def test_a_half_read_answer_may_end_on_any_thread(loaded: LoadedModel, random_ids: Ids) -> None:
    """As Python's collector ends one that was dropped: on the thread that it happens to run in."""
    with open_engine(loaded, EngineOptions(ops="native", precapture=(10, 20))) as engine:
        half_read = [engine.generate(random_ids(9, 500), 6)]
        next(half_read[0])
        elsewhere = threading.Thread(target=half_read.clear)
        elsewhere.start()
        elsewhere.join()
        list(engine.generate(random_ids(15, 500), 2))
        wait_until(lambda: engine.stats()["counters"]["background"] == 2)


def test_a_turn_whose_device_cannot_be_entered_or_left_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Turn(torch.device("cpu"))

    @contextmanager
    def on_a_broken_device(_: torch.device) -> Iterator[None]:
        if broken == "entering":
            raise RuntimeError(broken)
        yield
        raise RuntimeError(broken)

    monkeypatch.setattr("hybridgraph.engine.graphs.lock.on_device", on_a_broken_device)
    for broken in ("entering", "leaving"):
        with pytest.raises(RuntimeError, match=broken), turn:
            pass
        assert turn.of_captures.acquire(blocking=False)
        turn.of_captures.release()


def test_a_closed_engine_holds_nothing_that_only_the_collector_would_free(loaded: LoadedModel) -> None:
    engine = open_engine(loaded, EngineOptions(ops="native", forward="fused", precapture=(10,)))
    static = weakref.ref(engine._static)
    gc.collect()
    gc.disable()
    try:
        engine.close()
        del engine
        assert static() is None
    finally:
        gc.enable()


def test_an_engine_that_is_dropped_stops_capturing(loaded: LoadedModel) -> None:
    engine = open_engine(loaded, EngineOptions(ops="native", precapture=(10,)))
    assert engine._background is not None
    thread = engine._background._thread
    del engine
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("temperature", [1e-39, 1e-6, -1.0, 101.0, float("nan"), float("inf")])
def test_a_temperature_that_float32_cannot_divide_by_is_refused(loaded: LoadedModel, temperature: float) -> None:
    with pytest.raises(UserError, match="temperature"):
        open_engine(loaded, CASE3).generate([1], 1, temperature=temperature)
    assert len(list(open_engine(loaded, CASE3).generate([1], 2, temperature=1e-3))) == 2


def test_what_fails_in_the_background_is_not_tried_again(loaded: LoadedModel, random_ids: Ids) -> None:
    with open_engine(loaded, EngineOptions(ops="native", precapture=(10, 20))) as engine:
        assert engine._pool is not None
        engine._pool.backend = OutOfMemoryOnce(engine._pool.backend, 1)  # type: ignore[assignment]
        prompt, expected = prompt_and_answer(loaded, random_ids, 15, 4)
        for _ in range(3):
            assert greedy(engine, prompt, 4) == expected
            wait_until(lambda: not engine.is_capturing)
        assert engine.stats()["counters"] | {"padded": 3, "failed": 1, "background": 0} == engine.stats()["counters"]


@pytest.mark.parametrize(
    "arguments",
    [
        (["1"], 2), (None, 2), ([1.5], 2), (torch.zeros(2, 2, dtype=torch.int64), 2), ([1], 2.5), ([1], None),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_request_is_told_in_one_line(loaded: LoadedModel, arguments: tuple[Any, Any]) -> None:
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
def test_options_that_no_engine_can_have(loaded: LoadedModel, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        open_engine(loaded, EngineOptions(**options))


def test_lengths_that_nobody_chose_are_those_that_fit(loaded: LoadedModel) -> None:
    options = EngineOptions(ops="native", positions=64, max_graphs=4)
    assert options.lengths == (10, 20, 30, 40)
    assert EngineOptions(precapture={16, 8}).lengths == EngineOptions(precapture=[16, 8, 8]).lengths == (8, 16)
    with open_engine(loaded, options) as engine:
        assert engine.stats()["captures"] == 4 + 1  # the decode step's


@pytest.mark.parametrize("forward", ["hf", "fused"])
@pytest.mark.parametrize("uploads", [True, False])
def test_an_answer_that_overflows_does_not_spoil_the_next(
    forward: str, uploads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a capture behind it, which runs on the prompt that is still there where the driver cannot upload."""
    monkeypatch.setattr(EmulatedGraph, "upload", lambda graph: uploads)
    module = load_model("tiny-llama", load_format="dummy", dtype="float16", device=torch.device("cpu"), seed=3)
    overflowing = 7
    with torch.no_grad():
        module.module.get_input_embeddings().weight[overflowing] = 65504.0
        module.module.model.layers[0].self_attn.o_proj.weight.mul_(1000)
    with open_engine(module, EngineOptions(forward=forward, positions=128)) as engine:
        good = list(engine.generate([1, 2, 3, 4], 6))
        assert engine.stats()["overflowed_answers"] == 0
        for number in range(1, 4):
            answer = engine.generate([1] * 20 + [overflowing] + [1] * 20, 2)
            assert len([next(answer), next(answer)]) == 2
            assert not engine.shared_tensors()["logits"].isfinite().all(), "it did overflow"  # held: no capture's yet
            assert list(answer) == [] and engine.report.overflowed
            wait_until(lambda: not engine.is_capturing)
            assert list(engine.generate([1, 2, 3, 4], 6)) == good, number
            assert engine.report.overflowed is False
            assert engine.stats()["overflowed_answers"] == number
            wait_until(lambda: not engine.is_capturing)


@pytest.mark.parametrize("forward", ["hf", "fused"])
def test_an_engine_made_in_inference_mode_is_one_outside_and_in_other_threads(tmp_path: Path, forward: str) -> None:
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


class SlowCapture:
    """A backend whose captures take ``seconds``."""

    def __init__(self, real: object, seconds: float) -> None:
        self._real = real
        self._seconds = seconds

    def capture(self, warm_up: Callable[[], None], run: Callable[[], None]) -> object:
        time.sleep(self._seconds)
        return self._real.capture(warm_up, run)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_a_request_takes_the_graph_that_is_being_captured_for_it(loaded: LoadedModel, random_ids: Ids) -> None:
    options = EngineOptions(ops="native", graphs="exact", precapture=(1,), max_graphs=9)
    with open_engine(loaded, options) as engine:
        pool = engine._pool
        assert pool is not None
        pool.backend = SlowCapture(pool.backend, 0.2)  # type: ignore[assignment]
        list(engine.generate(random_ids(10, 500), 1))  # its successors are captured next: 11 first
        wait_until(lambda: engine.is_capturing and CAPTURING.locked())
        prompt, expected = prompt_and_answer(loaded, random_ids, 11, 3)
        assert greedy(engine, prompt, 3) == expected
        wait_until(lambda: not engine.is_capturing)
        captured = engine.stats()
        assert captured["captures"] == 1 + 1 + captured["graphs_held"] - 1, "decode, and each graph once"


class OutOfMemoryOnce:
    """A backend whose first capture after ``arm`` runs out of memory, as the allocator reports it."""

    name = "emulated"

    def __init__(self, real: object, failures: int) -> None:
        self._real = real
        self.failures = failures

    def capture(self, warm_up: Callable[[], None], run: Callable[[], None]) -> object:
        if self.failures:
            self.failures -= 1
            raise torch.OutOfMemoryError("out of memory")
        return self._real.capture(warm_up, run)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


@pytest.mark.parametrize(("failures", "path"), [(1, "captured"), (2, "eager")])
def test_capture_out_of_memory_evicts_retries_and_serves(
    loaded: LoadedModel, random_ids: Ids, failures: int, path: str
) -> None:
    prompt = random_ids(40, 500)
    options = EngineOptions(ops="native", graphs="exact", precapture=(1, 2, 3, 4), async_capture=False)
    with open_engine(loaded, options) as engine:
        expected = list(engine.generate(prompt, 4))
        assert engine._pool is not None
        engine._pool.backend = OutOfMemoryOnce(engine._pool.backend, failures)  # type: ignore[assignment]
        other = prompt[:-1]
        answer = list(engine.generate(other, 4))
        assert engine.report.graph_path == path
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


def test_a_long_first_seen_prompt_runs_in_pieces_and_then_by_its_own_graph(
    loaded: LoadedModel, random_ids: Ids
) -> None:
    prompts = [prompt_and_answer(loaded, random_ids, 200, 40) for _ in range(2)]
    options = EngineOptions(ops="fused", forward="fused", precapture=(30, 90), positions=256)
    with open_engine(loaded, options) as engine:
        paths = []
        for prompt, expected in prompts:
            assert greedy(engine, prompt, 40) == expected
            paths.append(engine.report.graph_path)
            wait_until(lambda: engine.stats()["counters"]["background"] == 1)
        assert paths == ["chunked", "exact"]
        assert engine.stats()["kernels"] == "torch"
        assert engine.stats()["counters"]["chunked"] == 1


@pytest.mark.parametrize("ops", ["native", "torchscript", "fused"])
def test_the_prompt_after_one_in_pieces_is_read_from_its_first_id(
    loaded: LoadedModel, random_ids: Ids, ops: str
) -> None:
    long, short, exact = (prompt_and_answer(loaded, random_ids, length, 10) for length in (200, 25, 30))
    options = EngineOptions(ops=ops, forward="fused", precapture=(30, 90), positions=256, async_capture=False)
    with open_engine(loaded, options) as engine:
        for (prompt, expected), path in ((long, "chunked"), (short, "padded"), (long, "chunked"), (exact, "exact")):
            assert greedy(engine, prompt, 10) == expected
            assert engine.report.graph_path == path


@pytest.mark.parametrize("ops", ["native", "fused"])
def test_a_client_that_fills_the_buffers_itself_is_served_in_pieces_too(
    loaded: LoadedModel, random_ids: Ids, ops: str
) -> None:
    prompt = random_ids(200, 500)
    options = EngineOptions(ops=ops, forward="fused", precapture=(30, 90), positions=256, async_capture=False)
    with open_engine(loaded, options) as engine:
        expected = list(engine.generate(prompt, 1))
        list(engine.generate(random_ids(200, 500), 1))  # whose ids the host holds by now
        shared = engine.shared_tensors()
        shared["ids"].zero_()
        shared["ids"][:200] = torch.tensor(prompt)
        with engine.hold():
            assert engine.replay_prefill(200).graph_path == "chunked"
        assert [int(shared["logits"].argmax())] == expected
        assert int(shared["last"]) == 199
        assert list(engine.generate(prompt, 1)) == expected


def test_a_forward_that_needs_the_whole_prompt_is_captured_instead(loaded: LoadedModel, random_ids: Ids) -> None:
    options = EngineOptions(ops="native", precapture=(30, 90), positions=256, async_capture=False)
    with open_engine(loaded, options) as engine:
        list(engine.generate(random_ids(200, 500), 1))
        assert engine.report.graph_path == "captured"


# --- on an NVIDIA GPU ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    """Four layers of Llama-2-7B's width, in half precision on the GPU."""
    directory = tmp_path_factory.mktemp("wide")
    (directory / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 4,'
        ' "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096}'
    )
    yield load_model(str(directory), load_format="dummy", dtype="float16", device=torch.device("cuda"), seed=3)


@pytest.fixture(scope="module")
def exact_module(wide: LoadedModel) -> torch.nn.Module:
    """The same weights in float32, apart: converting the module itself would move what graphs point to."""
    return copy.deepcopy(wide.module).float()


def reference_logits(module: torch.nn.Module, prompt: list[int]) -> torch.Tensor:
    """Logits of the last position by the module's eager forward in float32."""
    logits: torch.Tensor = module(torch.tensor([prompt], device="cuda"), use_cache=False).logits[0, -1]
    return logits


FP16_TOLERANCE = 1e-2  # ‖Δlogits‖ / ‖logits‖ against float32


@pytest.mark.gpu
@pytest.mark.parametrize("options", [CASE2, CASE4], ids=["case2", "case4"])
def test_gpu_logits_and_ids_equal_the_eager_ones(
    wide: LoadedModel, exact_module: torch.nn.Module, options: EngineOptions, random_ids: Ids
) -> None:
    with open_engine(wide, options) as engine:
        for length in (1, 7, 10, 33, 50, 100, 137, 200, 333, 400, 477):
            prompt = random_ids(length, 32000)
            answer = list(engine.generate(prompt, 1))
            logits = engine.shared_tensors()["logits"].float().clone()
            reference = reference_logits(exact_module, prompt)
            error = (logits - reference).norm() / reference.norm()
            assert error < FP16_TOLERANCE, (length, engine.report, float(error))
            top = reference.topk(2)
            if top.values[0] - top.values[1] > 2 * (logits - reference).abs().max():
                assert answer == [int(top.indices[0])]
        assert engine.stats()["counters"]["failed"] == 0


@pytest.mark.gpu
def test_gpu_a_long_prompt_in_pieces_has_the_logits_of_the_whole(
    wide: LoadedModel, exact_module: torch.nn.Module, random_ids: Ids
) -> None:
    prompt = random_ids(randint(215, 228), 32000)
    options = EngineOptions(ops="fused", forward="fused", precapture=(30, 100), async_capture=False)
    with open_engine(wide, options) as engine:
        answer = list(engine.generate(prompt, 24))
        assert engine.report.graph_path == "chunked"
        logits = engine.shared_tensors()["logits"].float().clone()
        reference = reference_logits(exact_module, prompt + answer[:-1])
        assert (logits - reference).norm() / reference.norm() < FP16_TOLERANCE


@pytest.mark.gpu
def test_gpu_decode_equals_a_fresh_prefill(wide: LoadedModel, exact_module: torch.nn.Module, random_ids: Ids) -> None:
    prompt = random_ids(45, 32000)
    with open_engine(wide, CASE4) as engine:
        answer = list(engine.generate(prompt, 24))
        logits = engine.shared_tensors()["logits"].float().clone()
        reference = reference_logits(exact_module, prompt + answer[:-1])
        assert (logits - reference).norm() / reference.norm() < FP16_TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("forward", ["hf", "fused"])
def test_gpu_real_model_continues_a_text_as_float32_does(smollm2: str, forward: str) -> None:
    """Greedy ids, wherever the two largest logits are further apart than the module's own half precision errs."""
    loaded, exact = (
        load_model(smollm2, load_format="auto", dtype=dtype, device=torch.device("cuda"), seed=0)
        for dtype in ("float16", "float32")
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(smollm2).parent, gguf_file=Path(smollm2).name)
    prompt = tokenizer("The capital of France is Paris. The capital of Germany is")["input_ids"]
    options = EngineOptions(forward=forward, precapture=(16, 32), async_capture=False)
    with open_engine(loaded, options) as engine:
        answer = list(engine.generate(prompt, 64))
        assert engine.report.graph_path in ("exact", "padded")
    whole = torch.tensor([prompt + answer[:-1]], device="cuda")
    expected, own = (module(whole).logits[0, len(prompt) - 1 :].float() for module in (exact.module, loaded.module))
    top = expected.topk(2)
    told_apart = top.values[:, 0] - top.values[:, 1] > 2 * (own - expected).abs().amax(-1)
    assert told_apart.sum() > 32
    assert torch.equal(torch.tensor(answer, device="cuda")[told_apart], top.indices[told_apart, 0])
    assert tokenizer.decode(answer).startswith(" Berlin")


@pytest.fixture
def without_cudnn_attention() -> Iterator[None]:
    """With it, as PyTorch prefers on Hopper, no two answers of the Hugging Face forward need be the same."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.gpu
@pytest.mark.usefixtures("without_cudnn_attention")
@pytest.mark.parametrize("forward", ["fused", "hf"])
def test_gpu_decode_stays_identical_while_the_background_captures(
    wide: LoadedModel, forward: str, random_ids: Ids
) -> None:
    """Ids and cache, bit for bit."""
    prompt, new_tokens = random_ids(100, 32000), 300
    with open_engine(wide, EngineOptions(ops="native", forward=forward, async_capture=False)) as engine:
        assert engine._pool is not None
        cache, written = engine._static._cache, len(prompt) + new_tokens - 1
        expected = list(engine.generate(prompt, new_tokens))
        keys, values = cache.keys.clone(), cache.values.clone()
        for length in (57, 203, 411):
            capture = threading.Thread(target=engine._pool.capture_in_background, args=(length,))
            stream = engine.generate(prompt, new_tokens)
            answer = [next(stream)]
            capture.start()
            answer += stream
            assert answer == expected
            assert torch.equal(cache.keys[:, :, :written], keys[:, :, :written])
            assert torch.equal(cache.values[:, :, :written], values[:, :, :written])
            capture.join()
        assert engine.stats()["counters"]["background"] == 3


@pytest.mark.gpu
def test_gpu_a_failed_capture_leaves_the_process_able_to_capture(wide: LoadedModel, random_ids: Ids) -> None:
    prompt = random_ids(60, 32000)
    with open_engine(wide, EngineOptions(ops="native", precapture=(60,), async_capture=False)) as engine:
        expected = list(engine.generate(prompt, 8))
        assert engine._pool is not None and isinstance(engine._pool.backend, CudaGraphs)

        def forbidden() -> None:
            torch.ones(1, device="cuda").item()  # a copy to the host, which no capture allows

        with pytest.raises(RuntimeError):
            engine._pool.backend.capture(lambda: None, forbidden)
        assert list(engine.generate(prompt, 8)) == expected
        assert list(engine.generate(prompt[:20], 8)) == list(engine.generate(prompt[:20], 8))
        assert engine.stats()["counters"]["captured"] >= 1
        assert engine.stats()["counters"]["failed"] == 0


@pytest.mark.gpu
def test_gpu_a_background_capture_compiles_nothing(wide: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's compiler holds the interpreter for tens of milliseconds, and a request would wait for it."""
    import triton

    options = EngineOptions(ops="fused", forward="fused", precapture=(10, 40, 400), async_capture=False)
    with open_engine(wide, options) as engine:
        assert engine._pool is not None
        compiled: list[str] = []
        monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **kernel: compiled.append(kernel["repr"]))
        for length in (1, 7, 33, 390):
            engine._pool.capture_in_background(length)
    assert compiled == []


@pytest.mark.gpu
def test_gpu_memory_is_stable_over_500_lengths_twice(wide: LoadedModel, random_ids: Ids) -> None:
    with open_engine(
        wide, EngineOptions(ops="native", graphs="exact", precapture=(500,), async_capture=False)
    ) as engine:
        used = []
        for _ in range(2):
            for length in range(1, 501):
                list(engine.generate(random_ids(length, 32000), 1))
            used.append(engine._pool.backend.memory_mib()[1])  # type: ignore[union-attr]
        counters = engine.stats()["counters"]
        print("MiB in use after each pass:", used, counters)
        assert used[1] <= 1.02 * used[0]
        assert counters["evicted"] == counters["captured"] + 1 - 50
        assert counters["failed"] == counters["eager"] == 0
