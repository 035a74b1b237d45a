"""Peer: vLLM's offline engine at batch 1, stepped by hand so that every id is seen as it comes.

Prefix caching is off, and graphs are captured for the very lengths that are measured: of a prompt in pieces
between its attentions, as vLLM does by default, or with ``vllm-full`` of a whole prefill, and no second process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from hybridgraph.cases import VLLM_FULL, Case
from hybridgraph.config import Config
from hybridgraph.errors import UserError
from hybridgraph.provenance import versions
from hybridgraph.records import Report, Request, SourceInfo
from hybridgraph.sources.checkpoint import Checkpoint, open_checkpoint
from hybridgraph.sources.introspection import Arguments, parameters_of
from hybridgraph.sources.nvidia import find_gpu, use_only
from hybridgraph.sources.outside import explained, info_of_engine

NAME = "vLLM"
MEMORY_FRACTION = 0.9


def open_vllm(config: Config, case: Case) -> VllmSource:
    """Start vLLM on the model of ``config``; raises UserError, in one line, where it cannot."""
    gpu = find_gpu(config.device, NAME)
    checkpoint = open_checkpoint(config, NAME)
    use_only(gpu)
    if case == VLLM_FULL:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # by default the engine runs in a process of its own
    arguments = Arguments(NAME)
    try:
        llm = _start(checkpoint, config, _graphs(config, case), arguments)
    except BaseException:
        checkpoint.release()
        raise
    info = info_of_engine(
        NAME,
        "vllm",
        versions("vllm")["vllm"] or "of unknown version",
        config=config,
        case=case,
        gpu=gpu,
        checkpoint=checkpoint,
        arguments=arguments,
        packages=("vllm", "flashinfer-python"),
    )
    return VllmSource(llm, checkpoint, info)


class VllmSource:
    """A ``TokenSource`` over one LLM object of this process."""

    def __init__(self, llm: Any, checkpoint: Checkpoint, info: SourceInfo) -> None:
        self._engine = llm.llm_engine
        self._checkpoint = checkpoint
        self._info = info
        self._num_requests = 0

    @property
    def info(self) -> SourceInfo:
        return self._info

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        self._num_requests += 1
        prompt = {"type": "token", "prompt_token_ids": request.prompt_ids}
        self._engine.add_request(str(self._num_requests), prompt, _sampling(request))
        num_tokens, cached = 0, 0
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                tokens = output.outputs[0].token_ids  # cumulative
                for token in tokens[num_tokens:]:
                    emit(int(token))
                num_tokens = len(tokens)
                cached = output.num_cached_tokens or 0
        if num_tokens != request.max_new_tokens:
            raise UserError(f"{NAME}'s stream ended after {num_tokens} of {request.max_new_tokens} tokens")
        if cached:
            raise UserError(f"{NAME} reused {cached} cached tokens: this is not the TTFT of a new prompt")
        return Report()

    def stats(self) -> dict[str, Any]:
        return {"requests_without_cached_tokens": self._num_requests}

    def close(self) -> None:
        core = getattr(self._engine, "engine_core", None)
        if core is not None:
            core.shutdown()
        self._checkpoint.release()


def _sampling(request: Request) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=request.max_new_tokens,
        temperature=request.temperature,
        seed=request.seed,
        ignore_eos=True,
        detokenize=False,
    )


def _graphs(config: Config, case: Case) -> dict[str, Any]:
    sizes = {"cudagraph_capture_sizes": sorted({1, *config.prompt_lengths})}
    return sizes | ({"cudagraph_mode": "FULL"} if case == VLLM_FULL else {})


def _start(checkpoint: Checkpoint, config: Config, graphs: dict[str, Any], arguments: Arguments) -> Any:
    try:
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs
    except Exception as error:  # a broken installation raises whatever its libraries raise
        raise UserError(f"{NAME} cannot be imported by {sys.executable}: {explained(error)}") from None
    wanted = {
        "model": checkpoint.location,
        "dtype": checkpoint.dtype,
        "load_format": checkpoint.load_format,
        "skip_tokenizer_init": True,
        "seed": config.seed,
        "max_num_seqs": 1,
        "max_model_len": checkpoint.positions,
        "max_num_batched_tokens": max(2048, checkpoint.positions),
        "enable_prefix_caching": False,
        "gpu_memory_utilization": MEMORY_FRACTION,
        "compilation_config": graphs,
    }
    needed = ("enable_prefix_caching", "skip_tokenizer_init", "load_format", "compilation_config")
    chosen = arguments.choose("LLM", parameters_of(EngineArgs), wanted, needed=needed)
    try:
        return LLM(**chosen)
    except Exception as error:  # whatever the library and its workers raise at the start
        raise UserError(f"{NAME} could not start: {explained(error)}") from None
