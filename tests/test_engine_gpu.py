"""The engine on an NVIDIA GPU: within half precision's own error of the plain forward, and stable while it captures."""

import copy
from collections.abc import Iterator
from pathlib import Path
from random import randint

import pytest
import torch
from engines import CASE2, CASE4, Ids, answer_of, open_engine, path_of, wait_until
from transformers import AutoTokenizer

from hybridgraph.engine.forward.static import StaticOperations
from hybridgraph.engine.settings import EngineOptions
from hybridgraph.models.loading import LoadedModel, load_model

pytestmark = pytest.mark.gpu


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


@pytest.mark.parametrize("options", [CASE2, CASE4], ids=["case2", "case4"])
def test_engine_logits_and_ids_equal_the_eager_ones(
    wide: LoadedModel, exact_module: torch.nn.Module, options: EngineOptions, random_ids: Ids
) -> None:
    with open_engine(wide, options) as engine:
        for length in (1, 7, 10, 33, 50, 100, 137, 200, 333, 400, 477):
            prompt = random_ids(length, 32000)
            answer, report = answer_of(engine, prompt, 1)
            logits = engine.shared_tensors()["logits"].float().clone()
            reference = reference_logits(exact_module, prompt)
            error = (logits - reference).norm() / reference.norm()
            assert error < FP16_TOLERANCE, (length, report, float(error))
            top = reference.topk(2)
            if top.values[0] - top.values[1] > 2 * (logits - reference).abs().max():
                assert answer == [int(top.indices[0])]
        assert engine.stats()["counters"]["failed"] == 0


def test_long_prompt_in_chunks_has_the_logits_of_the_whole(
    wide: LoadedModel, exact_module: torch.nn.Module, random_ids: Ids
) -> None:
    prompt = random_ids(randint(215, 228), 32000)
    options = EngineOptions(ops="fused", forward="fused", precapture=(30, 100), async_capture=False)
    with open_engine(wide, options) as engine:
        answer, report = answer_of(engine, prompt, 24)
        assert report.graph_path == "chunked"
        logits = engine.shared_tensors()["logits"].float().clone()
        reference = reference_logits(exact_module, prompt + answer[:-1])
        assert (logits - reference).norm() / reference.norm() < FP16_TOLERANCE


def test_decode_equals_a_fresh_prefill(wide: LoadedModel, exact_module: torch.nn.Module, random_ids: Ids) -> None:
    prompt = random_ids(45, 32000)
    with open_engine(wide, CASE4) as engine:
        answer = list(engine.generate(prompt, 24))
        logits = engine.shared_tensors()["logits"].float().clone()
        reference = reference_logits(exact_module, prompt + answer[:-1])
        assert (logits - reference).norm() / reference.norm() < FP16_TOLERANCE


@pytest.mark.parametrize("forward", ["hf", "fused"])
def test_trained_model_continues_a_text_as_float32_does(smollm2: str, forward: str) -> None:
    """Greedy ids, wherever the two largest logits are further apart than the module's own half precision errs."""
    loaded, exact = (
        load_model(smollm2, load_format="auto", dtype=dtype, device=torch.device("cuda"), seed=0)
        for dtype in ("float16", "float32")
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(smollm2).parent, gguf_file=Path(smollm2).name)
    prompt = tokenizer("The capital of France is Paris. The capital of Germany is")["input_ids"]
    options = EngineOptions(forward=forward, precapture=(16, 32), async_capture=False)
    with open_engine(loaded, options) as engine:
        answer, report = answer_of(engine, prompt, 64)
        assert report.graph_path in ("exact", "padded")
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


@pytest.mark.usefixtures("without_cudnn_attention")
@pytest.mark.parametrize("forward", ["fused", "hf"])
def test_decode_while_the_background_captures_stays_identical(wide: LoadedModel, forward: str, random_ids: Ids) -> None:
    """Ids and the last logits, which all of the cache has gone into, bit for bit."""
    prompt, new_tokens = random_ids(100, 32000), 300
    with open_engine(wide, EngineOptions(ops="native", forward=forward)) as engine:
        expected = list(engine.generate(prompt, new_tokens))
        wait_until(lambda: not engine.is_capturing)
        logits = engine.shared_tensors()["logits"]
        expected_logits = logits.clone()
        for length in (57, 203, 411):
            assert path_of(engine, random_ids(length, 32000)) == "padded"  # the background wants a graph of its own
            answer = engine.generate(prompt, new_tokens)
            ids = [next(answer)]
            assert engine.is_capturing
            ids += [next(answer) for _ in range(new_tokens - 1)]
            assert torch.equal(logits, expected_logits)  # still held: a capture's replay has not written them
            assert [*ids, *answer] == expected
            wait_until(lambda: not engine.is_capturing)
        assert engine.stats()["counters"]["background"] == 3


def test_capture_that_failed_leaves_the_process_able_to_capture(
    wide: LoadedModel, random_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random_ids(60, 32000)
    run_prefill = StaticOperations.run_prefill

    def forbidden(self: StaticOperations, length: int) -> None:
        run_prefill(self, length)
        if torch.cuda.is_current_stream_capturing():
            torch.ones(1, device="cuda").item()  # a copy to the host, which no capture allows

    options = EngineOptions(ops="native", graphs="exact", precapture=(60,), async_capture=False)
    with open_engine(wide, options) as engine:
        expected = list(engine.generate(prompt, 8))
        with monkeypatch.context() as patch:
            patch.setattr(StaticOperations, "run_prefill", forbidden)
            assert path_of(engine, prompt[:30]) == "eager"
        assert engine.stats()["counters"]["failed"] == 1
        assert list(engine.generate(prompt, 8)) == expected
        assert list(engine.generate(prompt[:20], 8)) == list(engine.generate(prompt[:20], 8))
        assert engine.stats()["counters"]["captured"] == 1
        assert engine.stats()["counters"]["failed"] == 1


def test_background_capture_compiles_nothing(
    wide: LoadedModel, random_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's compiler holds the interpreter for tens of milliseconds, and a request would wait for it."""
    import triton

    options = EngineOptions(ops="fused", forward="fused", precapture=(10, 40, 400))
    with open_engine(wide, options) as engine:
        list(engine.generate(random_ids(10, 32000), 2, temperature=0.7))
        compiled: list[str] = []
        monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **kernel: compiled.append(kernel["repr"]))
        for number, length in enumerate((1, 7, 33, 390), start=1):
            assert path_of(engine, random_ids(length, 32000)) == "padded"
            wait_until(lambda number=number: engine.stats()["counters"]["background"] == number)
    assert compiled == []


def test_memory_over_500_lengths_twice_is_stable(wide: LoadedModel, random_ids: Ids) -> None:
    with open_engine(
        wide, EngineOptions(ops="native", graphs="exact", precapture=(500,), async_capture=False)
    ) as engine:
        used = []
        for _ in range(2):
            for length in range(1, 501):
                list(engine.generate(random_ids(length, 32000), 1))
            free, total = torch.cuda.mem_get_info()
            used.append((total - free) / (1 << 20))
        counters = engine.stats()["counters"]
        print("MiB in use after each pass:", used, counters)
        assert used[1] <= 1.02 * used[0]
        assert counters["evicted"] == counters["captured"] + 1 - 50
        assert counters["failed"] == counters["eager"] == 0
