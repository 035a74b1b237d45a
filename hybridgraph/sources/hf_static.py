"""Peers: Hugging Face with a static cache, the documented way to make ``generate()`` fast.

On a GPU transformers compiles the decode step of a static cache by itself, with CUDA Graphs; the prefill stays eager,
so that ``hf-static`` lowers ITL, not TTFT. It compiles the prefill as well where that may come in chunks:
``hf-compiled`` asks for chunks as long as the cache, which every prompt fits in one of.
"""

from __future__ import annotations

from dataclasses import replace

from hybridgraph.cases import HF_COMPILED, Case
from hybridgraph.config import EngineSettings
from hybridgraph.engine.compilers import require_dynamo_compiles
from hybridgraph.sources.build import load
from hybridgraph.sources.huggingface import HuggingFaceSource
from hybridgraph.system.console import OnProgress


def open_hf_static(config: EngineSettings, case: Case, progress: OnProgress) -> HuggingFaceSource:
    """The baseline's source with a static cache, one for all lengths, on the device that ``config`` means."""
    loaded, info, resolved = load(config, case, progress)
    arguments = {"cache_implementation": "static", "max_cache_len": resolved.positions}
    compiled = "decode"
    if case == HF_COMPILED:
        arguments["prefill_chunk_size"] = resolved.positions
        compiled = "prefill and decode"
    on_gpu = loaded.device.type == "cuda"
    if on_gpu:
        require_dynamo_compiles(f"{case.title}'s {compiled}")
    info = replace(
        info,
        forward="hf",
        ops=f"generate(), static cache, {compiled} compiled by transformers on a GPU",
        graph_backend="torch.compile" if on_gpu else "none",
    )
    return HuggingFaceSource(loaded, info, **arguments)
