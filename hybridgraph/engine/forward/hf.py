"""The Hugging Face module's own forward, over static buffers (to be captured) or over its own cache (eager)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode

from hybridgraph.engine.forward.protocol import KVCache
from hybridgraph.errors import UserError
from hybridgraph.models.faults import model_fault
from hybridgraph.models.numbers import whole_number


class StaticHFForward:
    """The module's forward with every buffer owned by the caller, so that a CUDA Graph can hold it.

    The module sees a cache that writes where it is told, positions as a tensor, and a finished 4-D
    mask. The mask is passed in because the module builds a different one while a stream captures
    than while it warms up, and the two would take different attention kernels.
    """

    kernels = "torch"
    weight_bits = None
    reads_masked = True
    supports_chunks = False

    def __init__(self, model: PreTrainedModel, positions: int, *, counts: bool = True) -> None:
        """``counts``: whether the cache tells how many tokens came before, as a tensor, or always none.

        Some modules compute with that number; others look at it in Python, which no graph can follow.
        """
        config = model.config.get_text_config()
        _require_full_attention(config, positions)
        self._model = model
        self._counts = counts
        self._layers = _cached_layers(model)
        # Additive, in the model's precision: a boolean mask would be converted again in every layer. Rows are
        # aligned by their stride, which the memory-efficient attention kernels need.
        stride = -(-positions // 16) * 16
        bias = torch.full((positions, stride), -torch.inf, dtype=model.dtype, device=model.device).triu_(1)
        self._bias = bias[:, :positions]
        self._positions = torch.arange(positions, device=model.device)[None]

    def allocate_cache(self, positions: int) -> KVCache:
        def zeros(like: Tensor) -> Tensor:
            """Of keys or values [1, heads, 1, head_dim] of one position, room for all layers and positions."""
            return like.new_zeros((len(self._layers), like.shape[1], positions, like.shape[3]))

        return KVCache(*map(zeros, self._layers[0]))

    def prepare(self, lengths: Sequence[int]) -> None:
        """Its kernels serve every length."""

    def prefill(self, ids: Tensor, length: int, start: Tensor, last: Tensor, cache: KVCache, logits: Tensor) -> None:
        self._run(
            ids[:length],
            self._positions[:, :length],
            self._bias[:length, :length],
            _PrefillSlots(cache),
            last,
            logits,
        )

    def decode(self, token: Tensor, position: Tensor, cache: KVCache, logits: Tensor) -> None:
        mask = self._bias.index_select(0, position)[:, : cache.positions]
        only = torch.zeros_like(position)
        self._run(token, position[None], mask, _DecodeSlots(cache, position, self._counts), only, logits)

    def _run(self, ids: Tensor, positions: Tensor, mask: Tensor, slots: Cache, last: Tensor, logits: Tensor) -> None:
        output = self._model(
            input_ids=ids[None],
            position_ids=positions,
            attention_mask=mask[None, None],
            past_key_values=slots,
            use_cache=True,
            logits_to_keep=last,
        )
        logits.copy_(output.logits[0, 0])


def _cached_layers(model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """What ``model`` keeps of one token in each layer: keys and values. Raises UserError where that is not all."""
    output = model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=model.device), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    kept = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in getattr(cache, "layers", ())]
    layers = [(keys, values) for keys, values in kept if keys is not None and values is not None]
    if not layers or len(layers) < len(kept) or len({(k.shape, v.shape) for k, v in layers}) > 1:
        raise UserError(f"{type(model).__name__} does not keep the same keys and values in every layer")
    return layers


class _PrefillSlots(Cache):  # type: ignore[misc]  # transformers is not typed
    """Stores positions 0 … length-1, and lets attention read what has just been computed."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__(layers=[])
        self._cache = cache

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        length = keys.shape[2]
        self._cache.keys[layer, :, :length].copy_(keys[0])
        self._cache.values[layer, :, :length].copy_(values[0])
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        return 0


class _DecodeSlots(Cache):  # type: ignore[misc]
    """Stores one position, given by a tensor, and lets attention read the whole cache, masked."""

    def __init__(self, cache: KVCache, position: Tensor, counts: bool) -> None:
        super().__init__(layers=[])
        self._cache = cache
        self._position = position
        self._counts = counts

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        stored_keys, stored_values = self._cache.keys[layer], self._cache.values[layer]
        stored_keys.index_copy_(1, self._position, keys[0])
        stored_values.index_copy_(1, self._position, values[0])
        return stored_keys[None], stored_values[None]

    def get_seq_length(self, layer: int = 0) -> Tensor | int:
        return self._position if self._counts else 0


@dataclass
class GenerateState:
    """Where ``generate()`` would be in the answer in progress: its ids so far, and what it would call with next."""

    ids: Tensor = field(default_factory=lambda: torch.empty(0))  # int64 [1, so far]
    arguments: dict[str, Any] = field(default_factory=dict)
    output: Any = None  # of the last call


class EagerHFForward:
    """The module's forward as its own ``generate()`` calls it, launched kernel by kernel: any architecture.

    Every input, position and cache is prepared by the hooks that ``generate()`` calls and that models override:
    some drop their cache, some number positions by the mask, some call their cache by another name.
    """

    kernels = "torch"
    weight_bits = None
    reads_masked = False
    supports_chunks = False

    def __init__(self, model: PreTrainedModel) -> None:
        accepted = inspect.signature(model.forward).parameters
        self._model = model
        self._takes_mask, self._takes_positions = "attention_mask" in accepted, "position_ids" in accepted
        self._arguments: dict[str, Any] = {"use_cache": True} | (
            {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        )
        self._generation_config = GenerationConfig(use_cache=True)

    def allocate_cache(self, positions: int) -> GenerateState:
        """A place for the answer in progress; the module makes its cache as it goes."""
        return GenerateState()

    def prepare(self, lengths: Sequence[int]) -> None:
        """Its kernels serve every length."""

    def prefill(
        self, ids: Tensor, length: int, start: Tensor, last: Tensor, cache: GenerateState, logits: Tensor
    ) -> None:
        cache.ids, cache.output = ids[None, :length], None
        self._run(cache, logits, length)

    def decode(self, token: Tensor, position: Tensor, cache: GenerateState, logits: Tensor) -> None:
        cache.ids = torch.cat((cache.ids, token[None]), dim=-1)
        self._run(cache, logits, 1)

    def _run(self, state: GenerateState, logits: Tensor, num_new: int) -> None:
        """Call the module with the last ``num_new`` ids; raises UserError for a fault of the model's."""
        model = self._model
        try:
            if is_first := state.output is None:
                state.arguments = self._first_arguments(state.ids)
            else:
                state.arguments = model._update_model_kwargs_for_generation(state.output, state.arguments)
            inputs = model.prepare_inputs_for_generation(
                state.ids, next_sequence_length=num_new, is_first_iteration=is_first, **state.arguments
            )
            state.output = model(**inputs, return_dict=True)
            logits.copy_(state.output.logits[0, -1])
        except Exception as error:
            if (fault := model_fault(error)) is None:
                raise
            raise UserError(f"{type(model).__name__} cannot be run ({fault})") from error

    def _first_arguments(self, prompt: Tensor) -> dict[str, Any]:
        """What ``generate()`` adds to a prompt, int64 [1, length]."""
        model, arguments = self._model, dict(self._arguments)
        if self._takes_mask:
            arguments["attention_mask"] = torch.ones_like(prompt)
        if self._takes_positions:
            arguments["position_ids"] = model._prepare_position_ids_for_generation(prompt, arguments)
        config, length = self._generation_config, prompt.shape[1]
        model._prepare_cache_for_generation(config, arguments, GenerationMode.GREEDY_SEARCH, 1, length)
        return arguments


def length_dependent_rope(config: Any) -> str | None:
    """The rope scaling whose frequencies depend on the length in progress: a graph would keep those of its capture."""
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    return kind if kind in ("dynamic", "longrope") else None


def window_of(config: Any) -> int | None:
    """How far back the attention of some layer reaches, where that is limited; raises UserError for no number."""
    if "local" in (getattr(config, "attention_layers", None) or ()):  # as GPT-Neo calls it
        return whole_number(config, "window_size")
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if not getattr(config, "use_sliding_window", True) or "sliding_attention" not in kinds:
        return None
    return whole_number(config, "sliding_window")


def _require_full_attention(config: Any, positions: int) -> None:
    if (rope := length_dependent_rope(config)) is not None:
        raise UserError(
            f"{config.model_type} has rope scaling {rope}, whose frequencies change with the length: CUDA Graph cases "
            "need fixed ones"
        )
    if (window := window_of(config)) is not None and window < positions:
        raise UserError(
            f"{config.model_type} attends over a window of {window}, less than the {positions} positions asked for "
            "(--max-seq-len)"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise UserError(
            f"{config.model_type} has layers of {', '.join(sorted(map(str, kinds)))}: CUDA Graph cases need full "
            f"attention over all {positions} positions"
        )
