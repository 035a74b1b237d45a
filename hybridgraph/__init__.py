"""The latency of one LLM request: JIT compilation, CUDA Graphs, and the two together, measured.

from hybridgraph import HybridEngine
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridgraph.engine.engine import HybridEngine
    from hybridgraph.engine.settings import EngineOptions

if sys.version_info < (3, 10):  # noqa: UP036  # older ones can read this module alone
    sys.stderr.write(f"error: {sys.executable} is Python {sys.version.split()[0]}: 3.10 or newer is needed\n")
    raise SystemExit(2)

__all__ = ["EngineOptions", "HybridEngine"]


def __getattr__(name: str) -> Any:
    # Only who asks for the engine pays for torch: the report must work without it.
    if name == "HybridEngine":
        from hybridgraph.system.caches import keep_compiler_caches_private

        keep_compiler_caches_private()
        from hybridgraph.engine.engine import HybridEngine

        return HybridEngine
    if name == "EngineOptions":
        from hybridgraph.engine.settings import EngineOptions

        return EngineOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
