"""Peer: SGLang's offline engine at batch 1, streaming ids.

Its radix cache, which would keep prefixes, is off, and graphs are captured for the very lengths that are measured: of
a prompt in pieces, as SGLang does by default, or with ``sglang-full`` of a whole prefill, and without preparing the
next step during one, which delays a first token and hastens the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hybridgraph.cases import SGLANG_FULL, Case
from hybridgraph.config import ModelSettings
from hybridgraph.contract import Report, Request
from hybridgraph.sources.checkpoint import Checkpoint
from hybridgraph.sources.introspection import Arguments, parameters_of
from hybridgraph.sources.outside import OutsideSource, check_nothing_cached, open_outside, version_of
from hybridgraph.system.console import OnProgress


def open_sglang(config: ModelSettings, case: Case, progress: OnProgress) -> OutsideSource[Any]:
    """Start SGLang on the model of ``config``; raises UserError, in one line, where it cannot."""
    return open_outside(
        Sglang.name,
        lambda checkpoint, _: Sglang(checkpoint, config, case),
        config=config,
        case=case,
        backend="sglang",
        packages=("sglang", "sglang-kernel", "flashinfer-python"),
    )


class Sglang:
    """An ``OutsideEngine`` over one Engine object, whose scheduler runs in a process of its own.

    Seeds of requests are not passed on: SGLang heeds them in its deterministic mode alone, whose kernels are slower.
    """

    name = "SGLang"

    def __init__(self, checkpoint: Checkpoint, config: ModelSettings, case: Case) -> None:
        from sglang import Engine
        from sglang.srt.server_args import ServerArgs

        self.version = version_of("sglang")
        self.arguments = Arguments(self.name)
        graphs = _graphs(config, case)
        needed = ("disable_radix_cache", "skip_tokenizer_init", "load_format", *graphs)
        wanted = _wanted(checkpoint, config) | graphs
        self._engine = Engine(**self.arguments.choose("Engine", parameters_of(ServerArgs), wanted, needed=needed))

    def ask(self, request: Request) -> Iterator[Any]:
        sampling = {"max_new_tokens": request.max_new_tokens, "temperature": request.temperature, "ignore_eos": True}
        yield from self._engine.generate(input_ids=request.prompt_ids, sampling_params=sampling, stream=True)

    def ids_of(self, answer: Any) -> Sequence[int]:
        return answer["output_ids"]

    def report(self, answer: Any) -> Report:
        check_nothing_cached(self.name, answer["meta_info"]["cached_tokens"])
        return Report()

    def shutdown(self) -> None:
        self._engine.shutdown()


def _graphs(config: ModelSettings, case: Case) -> dict[str, Any]:
    whole = case == SGLANG_FULL
    prefill = {"bs": sorted(set(config.prompt_lengths))} | ({"backend": "full"} if whole else {})
    graphs = {"cuda_graph_config": {"prefill": prefill, "decode": {"bs": [1]}}}
    return graphs | ({"disable_overlap_schedule": True} if whole else {})


def _wanted(checkpoint: Checkpoint, config: ModelSettings) -> dict[str, Any]:
    return {
        "model_path": checkpoint.location,
        "dtype": checkpoint.dtype,
        "load_format": checkpoint.load_format,
        "skip_tokenizer_init": True,
        "random_seed": config.seed,
        "max_running_requests": 1,
        "context_length": checkpoint.positions,
        "disable_radix_cache": True,
        "log_level": "warning",  # "info" writes a line a request
    }
