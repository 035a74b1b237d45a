"""The numbers of a ``config.json``, read as what they have to be. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hybridgraph.errors import UserError

# Names of numbers that count modules, each of which is built in Python: millions would take hours.
COUNTED = re.compile("(?<!window_)layers?$|blocks?$|experts?$|depth$")
MAX_COUNTED = 10_000
POSITIONS = ("max_position_embeddings", "max_seq_len", "n_positions", "max_target_positions")
ANY_POSITIONS = 1 << 20  # of a model that knows no limit
QUANTIZED = ("quantization_config", "compression_config", "quantization")


def whole_number(config: Any, name: str) -> int | None:
    """The number ``name`` of a configuration, or None where there is none; raises UserError for anything else."""
    value = getattr(config, name, None)
    if value is not None and type(value) is not int:
        raise UserError(f"config.json: {name} {value!r:.40} is no whole number")
    return value


def positions_of(config: Any) -> int:
    """The longest sequence an architecture was made for; raises UserError for what is no number."""
    numbers = (whole_number(config, name) for name in POSITIONS)
    known = [number for number in numbers if number is not None and number > 0]  # of -1 and 0: without a limit
    return min(known, default=ANY_POSITIONS)


def require_buildable(numbers: Mapping[str, Any], name: str) -> None:
    """Raise UserError for numbers of which a library would build modules without end."""
    for key, value in _flat(numbers):
        if COUNTED.search(key) and type(value) is int and abs(value) > MAX_COUNTED:
            raise UserError(f"{name}/config.json: {key} {value}: at most {MAX_COUNTED} are built")


def require_unquantized(numbers: Mapping[str, Any], name: str) -> None:
    """Raise UserError for a model that has other weights than the random ones which would be made in their place."""
    for key, value in _flat(numbers):
        if key in QUANTIZED and value:
            found = value if isinstance(value, Mapping) else {}
            method = found.get("quant_method") or found.get("quant_algo")
            kind = f" ({method})" if isinstance(method, str) else ""
            raise UserError(
                f"{name}/config.json: its weights are quantized{kind}, and random ones would not be: "
                "measure the real ones with --load-format auto, or a copy of config.json that says nothing of it"
            )


def _flat(numbers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, also of the objects within."""
    for key, value in numbers.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _flat(value)
