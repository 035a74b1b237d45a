"""An engine in the measuring process itself: Case 3, and whoever embeds the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hybridgraph.engine import HybridEngine
from hybridgraph.records import Report, Request, SourceInfo


class LocalEngineSource:
    """A ``TokenSource`` over a HybridEngine of this process."""

    def __init__(self, engine: HybridEngine) -> None:
        self._engine = engine

    @property
    def info(self) -> SourceInfo:
        return self._engine.info

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        self._engine.check(request)
        for token in self._engine.answer(request):
            emit(token)
        return self._engine.report

    def stats(self) -> dict[str, Any]:
        return self._engine.stats()

    def close(self) -> None:
        self._engine.close()
