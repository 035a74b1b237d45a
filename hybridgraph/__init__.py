"""The latency of one LLM request: JIT compilation, CUDA Graphs, and the two together, measured.

from hybridgraph import HybridEngine
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridgraph.engine.engine import HybridEngine
    from hybridgraph.engine.settings import EngineOptions

__all__ = ["EngineOptions", "HybridEngine"]


def __getattr__(name: str) -> Any:
    # Only who asks for the engine pays for torch: the report must work without it.
    if name == "HybridEngine":
        from hybridgraph.engine.engine import HybridEngine

        return HybridEngine
    if name == "EngineOptions":
        from hybridgraph.engine.settings import EngineOptions

        return EngineOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
