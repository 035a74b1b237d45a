"""Case 5: TensorRT-LLM through its LLM API (PyTorch backend, versions 1.0 and later).

Token ids in, a stream of ids out, at batch 1. Reuse of KV blocks is off, and every request's own
metrics are asked whether it was: a prefix kept from an earlier request would make its TTFT a lie.
CUDA Graphs serve the decode step, and prefill graphs the very lengths that are measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hybridgraph.cases import TENSORRT_SINGLE, Case
from hybridgraph.config import ModelSettings
from hybridgraph.contract import Report, Request
from hybridgraph.errors import UserError
from hybridgraph.machine.driver import Gpu
from hybridgraph.sources.checkpoint import Checkpoint
from hybridgraph.sources.introspection import Arguments, parameters_of
from hybridgraph.sources.outside import OutsideSource, explained, open_outside
from hybridgraph.system.console import OnProgress

NAME = "TensorRT-LLM"
KV_FRACTION = 0.3  # of the memory that weights leave free: one request needs far less


def open_tensorrt_llm(config: ModelSettings, case: Case, progress: OnProgress) -> OutsideSource[Any]:
    """Start TensorRT-LLM on the model of ``config``, warmed up; raises UserError, in one line, where it cannot."""

    def start(checkpoint: Checkpoint, gpu: Gpu) -> TensorRTLLM:
        if case == TENSORRT_SINGLE:
            os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] = "1"  # read when the library is imported
        api = _import_api()
        check_driver(gpu)
        arguments = Arguments(f"{NAME} {api.version}")
        return TensorRTLLM(api, _start(api, checkpoint, config, arguments), arguments, checkpoint.end_id)

    packages = ("tensorrt_llm", "mpi4py")
    return open_outside(NAME, start, config=config, case=case, backend="tensorrt-llm", packages=packages)


@dataclass(frozen=True, kw_only=True)
class _Api:
    module: Any  # tensorrt_llm
    llmapi: Any  # tensorrt_llm.llmapi
    version: str


class TensorRTLLM:
    """An ``OutsideEngine`` over one LLM object."""

    name = NAME

    def __init__(self, api: _Api, llm: Any, arguments: Arguments, end_id: int) -> None:
        self.version = api.version
        self.arguments = arguments
        self._llm = llm
        self._sampling_params = api.module.SamplingParams
        self._end_id = end_id

    def ask(self, request: Request) -> Iterator[Any]:
        parameters = self._sampling_params(**sampling_arguments(request, self._end_id))
        prompt = {"prompt_token_ids": request.prompt_ids}
        yield from self._llm.generate_async(prompt, sampling_params=parameters, streaming=True)

    def ids_of(self, answer: Any) -> Sequence[int]:
        return answer.outputs[0].token_ids

    def report(self, answer: Any) -> Report:
        metrics = answer.outputs[0].request_perf_metrics
        _check_no_reuse(metrics)
        return Report(engine_ttft_ms=_engine_ttft_ms(metrics))

    def shutdown(self) -> None:
        self._llm.shutdown()


def sampling_arguments(request: Request, end_id: int) -> dict[str, Any]:
    """Keywords of SamplingParams that every version knows: full vocabulary, seeded, never ended by the end id."""
    arguments = {
        "max_tokens": request.max_new_tokens,
        "end_id": end_id,
        "pad_id": end_id,
        "ignore_eos": True,
        "detokenize": False,
        "return_perf_metrics": True,
    }
    if request.temperature == 0:
        return arguments | {"top_k": 1}
    return arguments | {"temperature": request.temperature, "top_p": 1.0, "seed": request.seed}


def _check_no_reuse(metrics: Any) -> None:
    if metrics is None:
        raise UserError(f"{NAME} returned no metrics of the request: whether it reused KV blocks cannot be checked")
    if (reused := metrics.kv_cache_metrics.num_reused_blocks) != 0:
        raise UserError(f"{NAME} reused {reused} KV blocks of earlier requests: this is not the TTFT of a new prompt")


def _engine_ttft_ms(metrics: Any) -> float:
    timing = metrics.timing_metrics
    return float((timing.first_token_time - timing.arrival_time).total_seconds() * 1e3)


def _import_api() -> _Api:
    try:
        import tensorrt_llm
        from tensorrt_llm import llmapi
    except Exception as error:  # a broken installation raises whatever its libraries raise
        raise UserError(f"{NAME} cannot be imported by {sys.executable}: {explained(error)}") from None
    version = str(getattr(tensorrt_llm, "__version__", "of unknown version"))
    if not hasattr(llmapi, "TorchLlmArgs"):
        raise UserError(f"{NAME} {version} is too old: its LLM API is measured from 1.0 on")
    return _Api(module=tensorrt_llm, llmapi=llmapi, version=version)


def check_driver(gpu: Gpu) -> None:
    """Raise UserError where the imported torch was built for a CUDA that the driver does not support."""
    # The library has imported its own torch by now; without one there is nothing to compare.
    built_for = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None)
    if built_for and int(str(built_for).split(".")[0]) > gpu.cuda[0]:
        has = ".".join(map(str, gpu.cuda))
        raise UserError(f"{NAME}'s torch needs CUDA {built_for}, and driver {gpu.driver} supports {has}: update it")


def _start(api: _Api, checkpoint: Checkpoint, config: ModelSettings, arguments: Arguments) -> Any:
    known = parameters_of(api.llmapi.TorchLlmArgs)
    try:
        wanted = _wanted(api.llmapi, known, checkpoint, config, arguments)
        needed = ("skip_tokenizer_init", "load_format", "kv_cache_config", "max_seq_len")
        return api.module.LLM(**arguments.choose("LLM", known, wanted, needed=needed))
    except UserError:
        raise
    except Exception as error:  # whatever the library and its workers raise at the start
        raise UserError(f"{NAME} {api.version} could not start: {explained(error)}") from None


def _wanted(
    llmapi: Any, known: set[str], checkpoint: Checkpoint, config: ModelSettings, arguments: Arguments
) -> dict[str, Any]:
    lengths = sorted(set(config.prompt_lengths))
    kv_cache = {"enable_block_reuse": False, "enable_partial_reuse": False, "free_gpu_memory_fraction": KV_FRACTION}
    return {
        "model": checkpoint.location,
        "dtype": checkpoint.dtype,
        "load_format": checkpoint.load_format,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "max_batch_size": 1,
        "max_seq_len": checkpoint.positions,
        "max_num_tokens": checkpoint.positions,
        "max_beam_width": 1,
        "enable_chunked_prefill": False,
        "return_perf_metrics": True,
        "kv_cache_config": arguments.build(llmapi.KvCacheConfig, kv_cache, needed=("enable_block_reuse",)),
    } | _graph_arguments(llmapi, known, lengths, arguments)


def _graph_arguments(llmapi: Any, known: set[str], lengths: Sequence[int], arguments: Arguments) -> dict[str, Any]:
    """Decode graphs at batch 1 and prefill graphs at the measured lengths, as this version wants to be asked."""
    decode = getattr(llmapi, "DecodeCudaGraphConfig", None) or llmapi.CudaGraphConfig
    compiled: dict[str, Any] = {"enable_userbuffers": False}
    prefill: dict[str, Any] = {}
    if "prefill_capture_num_tokens" in known:
        prefill = {"prefill_cuda_graph_backend": "piecewise", "prefill_capture_num_tokens": list(lengths)}
    else:
        compiled |= {"enable_piecewise_cuda_graph": True, "capture_num_tokens": list(lengths)}
    return prefill | {
        "cuda_graph_config": arguments.build(decode, {"batch_sizes": [1]}, needed=("batch_sizes",)),
        "torch_compile_config": arguments.build(llmapi.TorchCompileConfig, compiled),
    }
