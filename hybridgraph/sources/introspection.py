"""Calling an engine whose arguments differ between versions: ask what it takes, record what it was given."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hybridgraph.errors import UserError


def parameters_of(target: Callable[..., Any]) -> set[str]:
    """Names that ``target`` takes as keywords: a pydantic model's fields, a dataclass's, or a signature's."""
    if (model_fields := getattr(target, "model_fields", None)) is not None:
        return set(model_fields)
    if dataclasses.is_dataclass(target):
        return {field.name for field in dataclasses.fields(target) if field.init}
    return set(inspect.signature(target).parameters)


class Arguments:
    """Builds keyword arguments for versions at hand; ``used`` and ``unknown`` are for the record."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self.used: dict[str, dict[str, Any]] = {}
        self.unknown: dict[str, list[str]] = {}

    def choose(
        self, label: str, known: Collection[str], wanted: Mapping[str, Any], *, needed: Collection[str] = ()
    ) -> dict[str, Any]:
        """Those of ``wanted`` that are ``known``; raises UserError where one of ``needed`` is not."""
        if missing := sorted(set(needed) - set(known)):
            raise UserError(f"{self._engine} has no {label} argument {missing[0]}, which the measurement needs")
        chosen = {name: value for name, value in wanted.items() if name in known}
        self.used[label] = {name: _plain(value) for name, value in chosen.items()}
        self.unknown[label] = sorted(set(wanted) - set(known))
        return chosen

    def build(self, target: Callable[..., Any], wanted: Mapping[str, Any], *, needed: Collection[str] = ()) -> Any:
        """An instance of ``target`` with those of ``wanted`` that it knows."""
        label = target.__name__
        return target(**self.choose(label, parameters_of(target), wanted, needed=needed))

    def as_json(self) -> dict[str, Any]:
        return {"arguments": self.used, "unknown_to_this_version": {k: v for k, v in self.unknown.items() if v}}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else type(value).__name__
