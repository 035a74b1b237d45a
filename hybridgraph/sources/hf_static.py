"""Peer: Hugging Face with a static cache, the documented way to make ``generate()`` fast.

transformers compiles the decode step of a static cache by itself on a GPU; the prefill stays eager,
so what this peer lowers is ITL, not TTFT.
"""

from __future__ import annotations

from dataclasses import replace

from hybridgraph.build import load
from hybridgraph.cases import Case
from hybridgraph.config import Config
from hybridgraph.sources.huggingface import HuggingFaceSource


def open_hf_static(config: Config, case: Case) -> HuggingFaceSource:
    """The baseline's source with ``cache_implementation="static"``, on the device that ``config`` means."""
    loaded, info = load(config, case)
    info = replace(info, forward="hf", ops="generate(), static cache, decode compiled by transformers on a GPU")
    return HuggingFaceSource(loaded, info, cache_implementation="static")
