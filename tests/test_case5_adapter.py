"""The parts of Case 5 that need no second process, and the peer of our own environment."""

import dataclasses
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from architectures import SMALL

from hybridgraph.cases import CASE1, ENGINES
from hybridgraph.config import Config
from hybridgraph.contract import Request, SourceInfo, TokenSource
from hybridgraph.errors import UserError
from hybridgraph.machine.driver import Gpu
from hybridgraph.sources import registry
from hybridgraph.sources.checkpoint import Checkpoint, open_checkpoint
from hybridgraph.sources.introspection import Arguments, parameters_of
from hybridgraph.sources.outside import OutsideSource, explained
from hybridgraph.sources.tensorrt_llm import TensorRTLLM, check_driver, sampling_arguments
from hybridgraph.system.console import no_op

INFO = SourceInfo(
    model="m", dtype="float16", load_format="dummy", device="d", vocab_size=100, max_seq_len=64, special_ids=(2,)
)
CHECKPOINT = Checkpoint(
    name="m",
    location="m",
    dtype="float16",
    load_format="dummy",
    config={},
    end_id=2,
    special_ids=(2,),
    positions=512,
)

GPU = Gpu(name="d", uuid="GPU-0", driver="550.1", cuda=(12, 4), memory_bytes=1, visible="0")


class PlayedBack:
    """An LLM object whose next answer is given: cumulative ids a chunk, and the metrics of the last one."""

    def __init__(self, chunks: list[list[int]], reused: int = 0, metrics: bool = True) -> None:
        self._chunks = chunks
        timing = {"arrival_time": timedelta(seconds=1), "first_token_time": timedelta(seconds=1, milliseconds=9)}
        self._metrics = metrics and SimpleNamespace(
            kv_cache_metrics=SimpleNamespace(num_reused_blocks=reused), timing_metrics=SimpleNamespace(**timing)
        )
        self.sampling: dict[str, Any] = {}

    def generate_async(self, inputs: Any, sampling_params: Any, streaming: bool) -> Iterator[Any]:
        assert streaming and inputs == {"prompt_token_ids": [5, 6]}
        self.sampling = sampling_params
        for number, ids in enumerate(self._chunks, 1):
            metrics = self._metrics if number == len(self._chunks) else None
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, request_perf_metrics=metrics or None)])


def answer(llm: PlayedBack, max_new_tokens: int = 3) -> tuple[list[int], float | None]:
    tokens: list[int] = []
    api: Any = SimpleNamespace(version="1", module=SimpleNamespace(SamplingParams=dict))
    source = OutsideSource(TensorRTLLM(api, llm, Arguments("Engine 1"), CHECKPOINT.end_id), CHECKPOINT, INFO)
    report = source.stream(Request(prompt_ids=[5, 6], max_new_tokens=max_new_tokens), tokens.append)
    return tokens, report.engine_ttft_ms


@pytest.mark.parametrize("chunks", [[[7], [7, 8], [7, 8, 9]], [[7], [7, 8, 9]], [[7, 8, 9], [7, 8, 9]]])
def test_each_id_is_emitted_once_however_chunks_arrive(chunks: list[list[int]]) -> None:
    tokens, engine_ttft_ms = answer(PlayedBack(chunks))
    assert tokens == [7, 8, 9]
    assert engine_ttft_ms == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("llm", "part"),
    [
        (PlayedBack([[7], [7, 8]]), "2 of 3"),
        (PlayedBack([]), "0 of 3"),
        (PlayedBack([[7, 8, 9, 1]]), "4 of 3"),
        (PlayedBack([[7, 8, 9]], reused=2), "reused 2"),
        (PlayedBack([[7, 8, 9]], metrics=False), "cannot be checked"),
    ],
)
def test_an_answer_that_cannot_be_trusted_fails_its_sample(llm: PlayedBack, part: str) -> None:
    with pytest.raises(UserError, match=part):
        answer(llm)


def test_sampling_is_seeded_over_the_full_vocabulary_and_never_ended_by_the_end_id() -> None:
    sampled = sampling_arguments(Request(prompt_ids=[1], max_new_tokens=4, temperature=0.5, seed=9), 2)
    greedy = sampling_arguments(Request(prompt_ids=[1], temperature=0), 2)
    assert (sampled["temperature"], sampled["top_p"], sampled["seed"]) == (0.5, 1.0, 9)
    assert greedy["top_k"] == 1 and "temperature" not in greedy
    assert all(s["end_id"] == 2 and s["ignore_eos"] and not s["detokenize"] for s in (sampled, greedy))


def test_an_argument_that_a_version_lacks_is_on_record_and_a_needed_one_is_an_error() -> None:
    def llm(model: str, dtype: str) -> None: ...

    arguments = Arguments("Engine 1")
    known = parameters_of(llm)
    assert arguments.choose("LLM", known, {"model": "m", "new": 1}) == {"model": "m"}
    assert arguments.as_json()["unknown_to_this_version"] == {"LLM": ["new"]}
    with pytest.raises(UserError, match="Engine 1 has no LLM argument seed"):
        arguments.choose("LLM", known, {}, needed=("seed",))


def test_a_built_in_shape_becomes_a_directory_that_is_removed_with_it() -> None:
    checkpoint = open_checkpoint(Config(model="llama-2-7b"), "Engine")
    directory = Path(checkpoint.location)
    written = json.loads((directory / "config.json").read_text())
    assert written["torch_dtype"] == "float16" and written["architectures"] == ["LlamaForCausalLM"]
    assert checkpoint.end_id == 2 and checkpoint.special_ids == (1, 2)
    assert checkpoint.shape is not None and checkpoint.shape.weight_bytes == pytest.approx(13.2e9, rel=0.01)
    checkpoint.release()
    assert not directory.exists()


def test_special_ids_of_real_weights_include_those_of_the_generation_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"eos_token_id": [2, 7]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"pad_token_id": 9}))
    checkpoint = open_checkpoint(Config(model=str(tmp_path), load_format="auto"), "Engine")
    assert checkpoint.end_id == 2 and checkpoint.special_ids == (1, 2, 7, 9)
    assert checkpoint.location == str(tmp_path)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (Config(model="x.gguf", load_format="auto"), "no GGUF"),
        (Config(model="tiny-llama", max_seq_len=5000), "5000 positions exceed the 4096"),
    ],
)
def test_a_model_the_engine_cannot_take_is_refused(config: Config, part: str) -> None:
    with pytest.raises(UserError, match=part):
        open_checkpoint(config, "Engine")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("engine", ["hf-static", "hf-compiled"])
def test_a_static_cache_answers_as_generate_does(random_ids: Any, device: str, engine: str) -> None:
    config = Config(model="tiny-llama", device=device, dtype="float32", engine=engine)
    case = ENGINES[engine]
    assert registry.measures_here(case)
    opened = (closing(registry.open_source(config, each)) for each in (case, CASE1))
    with next(opened) as static, next(opened) as dynamic:
        for length, temperature in itertools.product((3, 17), (0.0, 0.7)):
            ids = random_ids(length, static.info.vocab_size)
            request = Request(prompt_ids=ids, max_new_tokens=6, temperature=temperature, seed=4)
            answers: list[list[int]] = [[], []]
            for source, answer_ids in zip((static, dynamic), answers, strict=True):
                source.stream(request, answer_ids.append)
            assert answers[0] == answers[1] and len(answers[0]) == 6


def test_a_driver_older_than_the_engines_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.0")
    check_driver(replace(GPU, cuda=(13, 0)))
    with pytest.raises(UserError, match=r"needs CUDA 13\.0, and driver 550\.1 supports 12\.4"):
        check_driver(GPU)


Installed = Callable[[dict[str, Any]], None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Makes modules importable, on a machine that seems to have a GPU."""

    def install(modules: dict[str, Any]) -> None:
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)

    monkeypatch.setattr("hybridgraph.sources.outside.find_gpu", lambda device, name: GPU)
    monkeypatch.setattr("hybridgraph.sources.outside.use_only", lambda gpu: None)
    return install


class OutsideLibrary:
    """vLLM's engine or SGLang's, with its module: keeps what it was started with, and gives the answer it is told to.

    Ids are cumulative, as theirs are: of a step, or of a chunk.
    """

    def __init__(self, package: str) -> None:
        self.started_with: dict[str, Any] = {}
        self.answer: list[list[int]] = []
        self.cached = 0
        known = dataclasses.make_dataclass("Arguments", KNOWN[package])
        self.modules: dict[str, Any] = {
            "vllm": {
                "vllm": SimpleNamespace(LLM=self._start, SamplingParams=dict),
                "vllm.engine.arg_utils": SimpleNamespace(EngineArgs=known),
            },
            "sglang": {
                "sglang": SimpleNamespace(Engine=self._start),
                "sglang.srt.server_args": SimpleNamespace(ServerArgs=known),
            },
        }[package]

    def _start(self, **arguments: Any) -> Any:
        self.started_with = arguments | {"processes": os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")}
        assert (Path(arguments.get("model") or arguments["model_path"]) / "config.json").is_file()
        return SimpleNamespace(llm_engine=self, generate=self.generate, shutdown=lambda: None)

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        assert prompt == {"type": "token", "prompt_token_ids": [5, 6]} and params["ignore_eos"]

    def has_unfinished_requests(self) -> bool:
        return bool(self.answer)

    def step(self) -> list[Any]:
        output = SimpleNamespace(token_ids=self.answer.pop(0))
        return [SimpleNamespace(outputs=[output], num_cached_tokens=self.cached)]

    def generate(self, *, input_ids: list[int], sampling_params: dict[str, Any], stream: bool) -> Iterator[Any]:
        assert stream and input_ids == [5, 6]
        assert sampling_params == {"max_new_tokens": 3, "temperature": 0.7, "ignore_eos": True}
        yield from ({"output_ids": ids, "meta_info": {"cached_tokens": self.cached}} for ids in self.answer)


KNOWN = {
    "vllm": ("model", "enable_prefix_caching", "skip_tokenizer_init", "load_format", "compilation_config"),
    "sglang": (
        *("model_path", "disable_radix_cache", "skip_tokenizer_init", "load_format"),
        *("cuda_graph_config", "disable_overlap_schedule"),
    ),
}


def open_foreign(config: Config) -> TokenSource:
    """The engine of another environment, in this process."""
    case = ENGINES[config.engine]
    return registry.ENGINES[case.engine].load_opener()(config, case, no_op)


def outside_answer(
    package: str, installed: Installed, chunks: list[list[Any]], cached: int = 0
) -> tuple[list[int], dict[str, Any]]:
    library, config = OutsideLibrary(package), Config(engine=package)
    installed(library.modules)
    library.answer, library.cached = list(chunks), cached
    tokens: list[int] = []
    with closing(open_foreign(config)) as source:
        source.stream(Request(prompt_ids=[5, 6], max_new_tokens=3), tokens.append)
        return tokens, source.stats()


@pytest.mark.parametrize("package", ["vllm", "sglang"])
def test_each_id_of_vllm_and_sglang_is_emitted_once(package: str, installed: Installed) -> None:
    answer = outside_answer(package, installed, [[7], [7, 8], [7, 8, 9]])
    assert answer == ([7, 8, 9], {"requests_without_reuse": 1})


@pytest.mark.parametrize(
    ("chunks", "cached", "part"),
    [
        ([[7], [7, 8]], 0, "2 of 3"),
        ([[7, 8, 9]], 16, "16 cached tokens"),
        ([[7, 8, "x"]], 0, "(vLLM|SGLang) failed to answer: .*'x'"),
    ],
)
@pytest.mark.parametrize("package", ["vllm", "sglang"])
def test_an_answer_of_vllm_or_sglang_that_cannot_be_trusted_fails_its_sample(
    package: str, chunks: list[list[Any]], cached: int, part: str, installed: Installed
) -> None:
    with pytest.raises(UserError, match=part):
        outside_answer(package, installed, chunks, cached)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("vllm", {"compilation_config": {"cudagraph_capture_sizes": [1, 3, 10]}, "processes": "1"}),
        (
            "vllm-full",
            {
                "compilation_config": {"cudagraph_capture_sizes": [1, 3, 10], "cudagraph_mode": "FULL"},
                "processes": "0",
            },
        ),
        ("sglang", {"cuda_graph_config": {"prefill": {"bs": [3, 10]}, "decode": {"bs": [1]}}}),
        (
            "sglang-full",
            {
                "cuda_graph_config": {"prefill": {"bs": [3, 10], "backend": "full"}, "decode": {"bs": [1]}},
                "disable_overlap_schedule": True,
            },
        ),
    ],
)
def test_engines_capture_the_lengths_that_are_measured_and_keep_no_prefix(
    engine: str,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    installed: Installed,
) -> None:
    library = OutsideLibrary(engine.removesuffix("-full"))
    installed(library.modules)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    config = Config(engine=engine, prompt_lengths=(10, 3))
    open_foreign(config).close()
    given = library.started_with
    kept = {"enable_prefix_caching": False} if engine.startswith("vllm") else {"disable_radix_cache": True}
    assert given.items() >= (expected | kept).items()
    assert given.get("disable_overlap_schedule") == expected.get("disable_overlap_schedule")
    assert not Path(given.get("model") or given["model_path"]).exists()


def test_an_engine_that_does_not_start_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Installed
) -> None:
    installed({"sglang": None})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = Config(engine="sglang")
    said = f"SGLang could not start in {sys.executable}: .*sglang"
    with warnings.catch_warnings(record=True) as of_collected, pytest.raises(UserError, match=said):
        warnings.simplefilter("always")
        open_foreign(config)
    assert not list(tmp_path.iterdir())
    assert not of_collected, "removed at once, not when the collector came by"


@pytest.mark.parametrize(
    "text", ["libmpi.so.40: no such file", "No module named mpi4py", "ompi_mpi_init failed", "MPI_Init"]
)
def test_an_mpi_error_says_what_to_install(text: str) -> None:
    assert "libopenmpi-dev" in explained(RuntimeError(text))


def test_a_compilation_error_is_not_taken_for_one_of_mpi() -> None:
    assert explained(ValueError("torch.compile failed\nat compilation")) == "torch.compile failed at compilation"
