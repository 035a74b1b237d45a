"""The floor: the least time the hardware needs for one request.

``floor = max(bytes that must be read / measured bandwidth, operations that must be done / measured matrix rate)``

(the roofline of Williams, Waterman and Patterson, 2009). The byte and operation counts come
from the model's own shapes and are minima: each weight is read once, and what no output
depends on is not counted (the last layer's query, attention and MLP of every position but
the last). Both rates are measured in the run; without them there is no floor.

The matrix rate is a short burst's, the most that the device can do. Where its power limits what it can go on
doing, the sustained rate gives a second floor, of requests that follow each other without a pause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

BYTES_PER_ELEMENT = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What this device was measured to do, in this run."""

    bytes_per_s: float
    flops_per_s: float
    sustained_flops_per_s: float | None = None  # the same product without a pause: what the chip's power allows


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The dimensions of a decoder with gated MLPs (Llama and its family)."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    bytes_per_element: int
    weight_bits: int | None = None  # of a weight as it is read, where it is packed

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: str) -> ModelShape | None:
        """Shape from a Hugging Face ``config.json``; None where its keys are not those of the family."""
        keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        if any(not isinstance(config.get(key), int) for key in keys) or config.get("num_local_experts"):
            return None
        heads = config["num_attention_heads"]
        return cls(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab_size=config["vocab_size"],
            bytes_per_element=BYTES_PER_ELEMENT[dtype],
        )

    @property
    def kv_params(self) -> int:
        """Weights of one layer's key and value projections."""
        return 2 * self.hidden_size * self.num_kv_heads * self.head_dim

    @property
    def layer_params(self) -> int:
        """Weights of one layer's matrices: query, key, value, output, gate, up, down."""
        query_and_output = 2 * self.hidden_size * self.num_heads * self.head_dim
        return query_and_output + self.kv_params + 3 * self.hidden_size * self.intermediate_size

    @property
    def head_params(self) -> int:
        """Weights of the output projection."""
        return self.hidden_size * self.vocab_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights one forward must read: layers and output projection (Llama-2-7B in fp16: 13.2 GB)."""
        bits = self.weight_bits or 8 * self.bytes_per_element
        return (self.num_layers * self.layer_params + self.head_params) * bits // 8

    def kv_bytes(self, context: int) -> int:
        """Bytes of keys and values of ``context`` positions in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * context * self.bytes_per_element

    def prefill_flops(self, length: int) -> int:
        """Least operations from ``length`` prompt ids to the logits of the last one (a multiply-add is two)."""
        full = (self.num_layers - 1) * length * self.layer_params
        last = length * self.kv_params + (self.layer_params - self.kv_params)
        pairs = (self.num_layers - 1) * length * (length + 1) // 2 + length
        attention = 2 * self.num_heads * self.head_dim * pairs
        return 2 * (full + last + self.head_params + attention)


def prefill_floor_ms(shape: ModelShape | None, rates: Rates | None, length: int) -> float | None:
    """Least milliseconds from ``length`` prompt ids to the first id; None where a rate or the shape is unknown."""
    if shape is None or rates is None:
        return None
    seconds = max(shape.weight_bytes / rates.bytes_per_s, shape.prefill_flops(length) / rates.flops_per_s)
    return seconds * 1e3


def sustained_floor_ms(shape: ModelShape | None, rates: Rates | None, length: int) -> float | None:
    """The same at the matrix rate that the device sustains, which its power may hold below the one of a short burst."""
    if rates is None or rates.sustained_flops_per_s is None:
        return None
    return prefill_floor_ms(shape, replace(rates, flops_per_s=rates.sustained_flops_per_s), length)


def decode_bytes(shape: ModelShape, context: int) -> int:
    """Bytes one decode step must read at ``context`` positions: every weight once, every cached key and value once."""
    return shape.weight_bytes + shape.kv_bytes(context)


def decode_floor_ms(shape: ModelShape | None, rates: Rates | None, context: int) -> float | None:
    """Least milliseconds of one decode step at ``context`` positions; None where unknown."""
    if shape is None or rates is None:
        return None
    return decode_bytes(shape, context) / rates.bytes_per_s * 1e3
