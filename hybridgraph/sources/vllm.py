"""Peer: vLLM's offline engine at batch 1, stepped by hand so that every id is seen as it comes.

Prefix caching is off, and graphs are captured for the very lengths that are measured: of a prompt in pieces
between its attentions, as vLLM does by default, or with ``vllm-full`` of a whole prefill, and no second process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from hybridgraph.cases import VLLM_FULL, Case
from hybridgraph.config import ModelSettings
from hybridgraph.contract import Report, Request
from hybridgraph.sources.checkpoint import Checkpoint
from hybridgraph.sources.introspection import Arguments, parameters_of
from hybridgraph.sources.outside import OutsideSource, check_nothing_cached, open_outside, version_of
from hybridgraph.system.console import OnProgress

MEMORY_FRACTION = 0.9


def open_vllm(config: ModelSettings, case: Case, progress: OnProgress) -> OutsideSource[Any]:
    """Start vLLM on the model of ``config``; raises UserError, in one line, where it cannot."""
    return open_outside(
        Vllm.name,
        lambda checkpoint, _: Vllm(checkpoint, config, case),
        config=config,
        case=case,
        backend="vllm",
        packages=("vllm", "flashinfer-python"),
    )


class Vllm:
    """An ``OutsideEngine`` over one LLM object."""

    name = "vLLM"

    def __init__(self, checkpoint: Checkpoint, config: ModelSettings, case: Case) -> None:
        if case == VLLM_FULL:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # by default the engine runs in a process of its own
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs

        self.version = version_of("vllm")
        self.arguments = Arguments(self.name)
        needed = ("enable_prefix_caching", "skip_tokenizer_init", "load_format", "compilation_config")
        wanted = _wanted(checkpoint, config, case)
        self._engine = LLM(**self.arguments.choose("LLM", parameters_of(EngineArgs), wanted, needed=needed)).llm_engine
        self._num_requests = 0

    def ask(self, request: Request) -> Iterator[Any]:
        self._num_requests += 1
        prompt = {"type": "token", "prompt_token_ids": request.prompt_ids}
        self._engine.add_request(str(self._num_requests), prompt, _sampling(request))
        while self._engine.has_unfinished_requests():
            yield from self._engine.step()

    def ids_of(self, answer: Any) -> Sequence[int]:
        return answer.outputs[0].token_ids

    def report(self, answer: Any) -> Report:
        check_nothing_cached(self.name, answer.num_cached_tokens)
        return Report()

    def shutdown(self) -> None:
        core = getattr(self._engine, "engine_core", None)
        if core is not None:
            core.shutdown()


def _sampling(request: Request) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=request.max_new_tokens,
        temperature=request.temperature,
        seed=request.seed,
        ignore_eos=True,
        detokenize=False,
    )


def _wanted(checkpoint: Checkpoint, config: ModelSettings, case: Case) -> dict[str, Any]:
    graphs = {"cudagraph_capture_sizes": sorted({1, *config.prompt_lengths})}
    return {
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
        "compilation_config": graphs | ({"cudagraph_mode": "FULL"} if case == VLLM_FULL else {}),
    }
