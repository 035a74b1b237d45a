"""What a generator tells of itself, checked before anything rests on it: its types, and its values' ranges.

The types of messages are the decoder's business. Here are the facts that travel as plain JSON, and what
would be well-formed and still no model, such as a vocabulary of no ids.
"""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

from hybridgraph.contract import SourceInfo
from hybridgraph.errors import UserError, shortened

MAX_VOCAB_SIZE = 1 << 24  # a client keeps a list of the ids
MAX_COUNT = 1 << 40  # of positions, of a model's dimensions
MAX_DEPTH = 8  # of objects and lists within each other

# Facts that are read by their names: where, and of which type. Any may be missing.
TYPES: dict[str, dict[str, type]] = {
    "": {"case": str, "resolved_configuration": dict, "gpu": dict},
    "gpu": {"uuid": str},
}


def require_usable(info: SourceInfo, whose: str) -> None:
    """Raise UserError for facts that no measurement could rest on; ``whose`` they are is named to the user."""
    if wrong := _wrong_with(info):
        raise UserError(f"{whose} does not tell what it is: {shortened(wrong)}")


def require_json(values: dict[str, Any], what: str) -> None:
    """Raise UserError where ``values`` are not JSON, or hold counters that are no numbers."""
    wrong = _no_json(values, "")
    counters = values.get("counters", {})
    if not wrong and not (isinstance(counters, dict) and all(type(count) is int for count in counters.values())):
        wrong = f"counters {counters}"
    if wrong:
        raise UserError(f"{what} cannot be used: {shortened(wrong)}")


def _wrong_with(info: SourceInfo) -> str:
    """The first of its facts that cannot be; empty where there is none."""
    for name in ("model", "dtype", "load_format", "device", "graph_backend", "ops", "forward"):
        if not getattr(info, name).isprintable():
            return f"{name} {getattr(info, name)!r}"
    if not 1 <= info.vocab_size <= MAX_VOCAB_SIZE:
        return f"a vocabulary of {info.vocab_size}"
    if not 1 <= info.max_seq_len < MAX_COUNT:
        return f"{info.max_seq_len} positions"
    if any(not 0 <= token_id < MAX_COUNT for token_id in info.special_ids):
        return f"special ids {info.special_ids}"
    if info.shape and any(not 1 <= size < MAX_COUNT for size in astuple(info.shape) if size is not None):
        return f"{info.shape}"
    if info.rates and any(not (math.isfinite(rate) and rate > 0) for rate in astuple(info.rates) if rate is not None):
        return f"{info.rates}"
    return _no_json(info.environment, "") or _mistyped(info.environment)


def _mistyped(environment: dict[str, Any]) -> str:
    for section, types in TYPES.items():
        facts = environment.get(section, {}) if section else environment
        for name, kind in types.items():
            if name in facts and not isinstance(facts[name], kind):
                return f"{name} {facts[name]!r}"
    return ""


def _no_json(value: object, name: str, depth: int = 0) -> str:
    """Where in ``value`` something is that JSON has not; empty where nothing is."""
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return ""
    if depth < MAX_DEPTH and isinstance(value, list):
        return next(filter(None, (_no_json(item, name, depth + 1) for item in value)), "")
    if depth < MAX_DEPTH and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return next(filter(None, (_no_json(item, key, depth + 1) for key, item in value.items())), "")
    return f"{name} {value!r}"
