"""Every path of the engine gives the ids of ``generate()``."""

import copy
import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, SMALL, tiny_model
from engines import CASE2, CASE3, CASE4, Ids, answer_of, greedy, open_engine, prompt_and_answer, wait_until
from torch import Tensor

from hybridgraph.contract import Request
from hybridgraph.engine.forward.fused import FusedCache, FusedForward
from hybridgraph.engine.forward.hf import StaticHFForward
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.errors import UserError
from hybridgraph.models.loading import LoadedModel, load_model
from hybridgraph.sources.huggingface import HuggingFaceSource


def test_engine_at_every_length_answers_as_generate(loaded: LoadedModel, random_ids: Ids) -> None:
    with open_engine(loaded, CASE2) as case2, open_engine(loaded, CASE4) as case4:
        for length in range(1, 131):
            prompt, expected = prompt_and_answer(loaded, random_ids, length, 41)
            assert greedy(case2, prompt, 41) == greedy(case4, prompt, 41) == expected
        for engine in (case2, case4):
            counters = engine.stats()["counters"]
            assert sum(counters[path] for path in ("exact", "padded", "captured", "eager")) == 130
            assert counters["failed"] == counters["eager"] == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_case3_over_64_tokens_answers_as_generate(name: str, tmp_path: Path, random_ids: Ids) -> None:
    loaded = tiny_model(name, tmp_path)
    source = open_engine(loaded, CASE3)
    for length in (1, 17, 64):
        prompt, expected = prompt_and_answer(loaded, random_ids, length, 64)
        assert greedy(source, prompt, 64) == expected


def dummy(directory: Path, numbers: dict[str, Any]) -> LoadedModel:
    """The model of a ``config.json`` with ``numbers``, its logits spread so that ids are no ties."""
    (directory / "config.json").write_text(json.dumps(numbers))
    loaded = load_model(str(directory), load_format="dummy", dtype="float32", device=torch.device("cpu"), seed=1)
    for parameter in loaded.module.parameters():
        if parameter.dim() > 1:
            parameter.mul_(6.0)
    return loaded


GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500, "n_positions": 256}
BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500}
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


def test_case3_without_rotary_embeddings_answers_as_generate(tmp_path: Path, random_ids: Ids) -> None:
    loaded = dummy(tmp_path, GPT2)
    source = open_engine(loaded, EngineOptions(ops="native", graphs="none", positions=256))
    prompt, expected = prompt_and_answer(loaded, random_ids, 20, 20)
    assert greedy(source, prompt, 20) == expected


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        (BLOOM, "does not run over static buffers"),
        (GPT_NEO, "attends over a window of 16"),
        (LONGROPE, "rope scaling longrope"),
    ],
    ids=["bloom", "gpt_neo", "longrope"],
)
@pytest.mark.parametrize("forward", ["hf", "fused"])
def test_graphs_of_a_model_that_would_answer_otherwise_are_refused_with_advice_that_is_true(
    tmp_path: Path, numbers: dict[str, Any], complaint: str, forward: str
) -> None:
    """The module's attention has a mask, a cache or a rotation of its own, which static buffers do not give it."""
    loaded = dummy(tmp_path, numbers)
    said = complaint if forward == "hf" else "--forward fused does not cover"
    with pytest.raises(UserError, match=f"{said}.*: Cases 1 and 3 measure this model$"):
        open_engine(loaded, EngineOptions(ops="native", forward=forward, positions=128))
    case3 = open_engine(loaded, EngineOptions(ops="native", graphs="none", positions=128))
    assert len(list(case3.generate([5], 3))) == 3


def test_fused_forward_of_another_architecture_is_refused_with_advice_that_is_true(tmp_path: Path) -> None:
    loaded = dummy(tmp_path, GPT2)
    with pytest.raises(UserError, match=r"does not cover GPT2LMHeadModel .*: use --forward hf$"):
        open_engine(loaded, EngineOptions(forward="fused", positions=64))
    open_engine(loaded, EngineOptions(forward="hf", positions=64, precapture=(8,))).close()


def test_model_that_no_case_can_run_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dummy(tmp_path, GPT2)

    def broken(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no such\nattention")

    monkeypatch.setattr(loaded.module, "forward", broken)
    with pytest.raises(UserError, match=r"no case measures this model \(.*NotImplementedError: no such attention\)"):
        open_engine(loaded, EngineOptions(positions=64))
    case3 = open_engine(loaded, EngineOptions(graphs="none", positions=64))
    for source in (case3, HuggingFaceSource(loaded, loaded.info())):
        with pytest.raises(
            UserError, match=r"GPT2LMHeadModel cannot be run \(NotImplementedError: no such attention\)"
        ):
            greedy(source, [1, 2, 3], 2)


def test_error_of_emit_is_no_fault_of_the_model(tmp_path: Path) -> None:
    loaded = dummy(tmp_path, GPT2)

    def emit(_: int) -> None:
        raise KeyError("the caller's own")

    case3 = open_engine(loaded, EngineOptions(graphs="none", positions=64))
    for source in (case3, HuggingFaceSource(loaded, loaded.info())):
        with pytest.raises(KeyError, match="the caller's own"):
            source.stream(Request(prompt_ids=[1, 2, 3]), emit)


TEMPERED = SMALL | {
    "model_type": "llama4_text", "num_key_value_heads": 2, "head_dim": 16, "intermediate_size_mlp": 160,
    "num_local_experts": 2, "layer_types": ["full_attention"] * 2, "no_rope_layers": [0, 0], "floor_scale": 8,
}  # fmt: skip


def test_attention_temperature_by_position_is_that_of_generate(tmp_path: Path, random_ids: Ids) -> None:
    loaded = dummy(tmp_path, TEMPERED)
    with open_engine(loaded, EngineOptions(ops="native", positions=128, precapture=(16, 64, 100))) as engine:
        for length in (3, 40, 90):
            prompt, expected = prompt_and_answer(loaded, random_ids, length, 30)
            assert greedy(engine, prompt, 30) == expected


@pytest.mark.parametrize("positions", [64, 512])
def test_probe_reaches_what_depends_on_the_position(
    tmp_path: Path, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward that is right up to the middle of what is served, and wrong at its end."""
    decode = StaticHFForward.decode

    def wrong_later(self: StaticHFForward, token: Tensor, position: Tensor, cache: Any, logits: Tensor) -> None:
        decode(self, token, position, cache, logits)
        logits.mul_(1.0 + 0.01 * (position >= positions // 2))

    loaded = dummy(tmp_path, SMALL | {"model_type": "llama"})
    open_engine(loaded, EngineOptions(ops="native", positions=positions, precapture=(8,))).close()
    monkeypatch.setattr(StaticHFForward, "decode", wrong_later)
    said = f"the logits at position {positions - 2} differ by 1.0%: Cases 1 and 3 measure this model"
    with pytest.raises(UserError, match=said):
        open_engine(loaded, EngineOptions(ops="native", positions=positions, precapture=(8,)))


def test_fused_forward_with_a_wrong_rotation_is_refused_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model("tiny-llama", load_format="dummy", dtype="float16", device=torch.device("cpu"), seed=0)
    open_engine(loaded, EngineOptions(forward="fused", graphs="none")).close()
    allocate_cache = FusedForward.allocate_cache

    def unrotated(self: FusedForward, positions: int) -> FusedCache:
        cache = allocate_cache(self, positions)
        return replace(cache, cos=torch.ones_like(cache.cos), sin=torch.zeros_like(cache.sin))

    monkeypatch.setattr(FusedForward, "allocate_cache", unrotated)
    with pytest.raises(UserError, match="the logits at position 5 differ by"):
        open_engine(loaded, EngineOptions(forward="fused", graphs="none"))


def test_probe_with_one_prompt_whose_rounding_is_amplified_is_passed(
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
    with pytest.raises(UserError, match=r"the logits at position 5 differ by 10\.0%: use --forward hf"):
        open_engine(loaded, EngineOptions(forward="fused", graphs="none"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_fused_forward_of_a_trained_model_is_served_in_half_precision(trained: LoadedModel, dtype: torch.dtype) -> None:
    loaded = replace(trained, module=copy.deepcopy(trained.module).to(dtype), dtype=dtype)
    open_engine(loaded, EngineOptions(forward="fused", graphs="none")).close()


def test_engine_of_a_trained_model_answers_as_generate(trained: LoadedModel) -> None:
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


def test_sampling_with_a_seed_is_repeated_by_any_graph(loaded: LoadedModel, random_ids: Ids) -> None:
    prompt = random_ids(13, 500)
    with open_engine(loaded, CASE4) as padded, open_engine(loaded, CASE2) as exact:
        answers = [list(e.generate(prompt, 24, temperature=0.7, seed=s)) for e in (padded, exact) for s in (5, 5, 6)]
    assert answers[0] == answers[1] == answers[3] == answers[4]
    assert answers[2] == answers[5] != answers[0]


def test_long_prompt_first_seen_runs_in_chunks_and_then_by_its_own_graph(loaded: LoadedModel, random_ids: Ids) -> None:
    prompts = [prompt_and_answer(loaded, random_ids, 200, 40) for _ in range(2)]
    options = EngineOptions(ops="fused", forward="fused", precapture=(30, 90), positions=256)
    with open_engine(loaded, options) as engine:
        paths = []
        for prompt, expected in prompts:
            answer, report = answer_of(engine, prompt, 40)
            assert answer == expected
            paths.append(report.graph_path)
            wait_until(lambda: engine.stats()["counters"]["background"] == 1)
        assert paths == ["chunked", "exact"]
        assert engine.stats()["kernels"] == "torch"
        assert engine.stats()["counters"]["chunked"] == 1


@pytest.mark.parametrize("ops", ["native", "torchscript", "fused"])
def test_prompt_after_one_in_chunks_is_read_from_its_first_id(loaded: LoadedModel, random_ids: Ids, ops: str) -> None:
    long, short, exact = (prompt_and_answer(loaded, random_ids, length, 10) for length in (200, 25, 30))
    options = EngineOptions(ops=ops, forward="fused", precapture=(30, 90), positions=256, async_capture=False)
    with open_engine(loaded, options) as engine:
        for (prompt, expected), path in ((long, "chunked"), (short, "padded"), (long, "chunked"), (exact, "exact")):
            answer, report = answer_of(engine, prompt, 10)
            assert (answer, report.graph_path) == (expected, path)


@pytest.mark.parametrize("ops", ["native", "fused"])
def test_client_that_fills_the_buffers_itself_is_served_in_chunks(
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


@pytest.mark.parametrize("ops", ["native", "fused"])
def test_chunked_prefill_that_is_interrupted_changes_nothing_for_the_next(
    ops: str, random_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model("tiny-llama", load_format="dummy", dtype="float32", device=torch.device("cpu"), seed=0)
    options = EngineOptions(ops=ops, forward="fused", precapture=(64, 128, 500), async_capture=False, positions=600)
    prompt, long = random_ids(480, 2000), random_ids(300, 2000)
    with open_engine(loaded, options) as engine:
        expected = list(engine.generate(prompt, 4))
        prefill, starts = FusedForward.prefill, []

        def interrupted(self: FusedForward, ids: Tensor, length: int, start: Tensor, *rest: Any) -> None:
            starts.append(int(start))
            if len(starts) == 2:
                raise KeyboardInterrupt
            prefill(self, ids, length, start, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(FusedForward, "prefill", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(engine.generate(long, 2))
        assert starts[1] > 0
        assert list(engine.generate(prompt, 4)) == expected
