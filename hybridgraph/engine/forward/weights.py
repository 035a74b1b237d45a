"""A Llama-family module's weights as the fused forward wants them: projections of one input merged, nothing copied,
and where it is asked for, packed in twelve bits beside that.

A merged matrix takes the place of its parts: it is filled, each part's parameter becomes a view of
its rows, and the part's own memory is given back before the next layer. The Hugging Face module
goes on working, on the same storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hybridgraph.engine.forward.hf import length_dependent_rope, window_of
from hybridgraph.errors import UserError
from hybridgraph.kernels.heuristics import MOST_EXCEPTIONS
from hybridgraph.kernels.packed import GROUP, PackedMatrix, count_exceptions, pack
from hybridgraph.kernels.protocol import HeadNorms, Heads, Matrix, plain_of

COVERED = ("llama", "mistral", "qwen2", "qwen3")


class CannotPack(UserError):
    """Packed weights were asked for, and cannot be had."""

    def __init__(self, why: str) -> None:
        super().__init__(f"--weights packed: {why}: use --weights plain or auto")


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One decoder layer. Matrices are [outputs, inputs], as nn.Linear keeps them, or packed of such."""

    input_norm: Tensor
    qkv: Matrix  # rows: queries, keys, values
    qkv_bias: Tensor | None
    head_norms: HeadNorms
    out: Matrix
    mlp_norm: Tensor
    gate_up: Matrix  # rows: gate, up
    down: Matrix


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    """A whole model: what its forward computes with, and the numbers that say how."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Matrix  # the embedding's own storage where they are tied
    heads: Heads
    eps: float
    inv_freq: Tensor  # float32 [head_dim / 2]
    rope_scale: float  # of cosines and sines
    window: int | None  # attention reaches this far back; None: to the beginning

    @property
    def matrices(self) -> Iterator[Matrix]:
        """All that activations are multiplied by."""
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.gate_up, layer.down)
        yield self.head


def merge_weights(model: PreTrainedModel) -> ModelWeights:
    """Merge ``model``'s projections in place; raises UserError where this forward does not cover the architecture."""
    config = model.config.get_text_config()
    _require_covered(model, config)
    decoder = model.model
    attention = decoder.layers[0].self_attn
    return ModelWeights(
        embedding=decoder.embed_tokens.weight.detach(),
        layers=tuple(_merge_layer(layer) for layer in decoder.layers),
        final_norm=decoder.norm.weight.detach(),
        head=model.lm_head.weight.detach(),
        heads=Heads(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            scale=float(attention.scaling),
            eps=float(config.rms_norm_eps),
        ),
        eps=float(config.rms_norm_eps),
        inv_freq=decoder.rotary_emb.inv_freq.detach().float(),
        rope_scale=float(decoder.rotary_emb.attention_scaling),
        window=window_of(config),
    )


def why_not_packed(weights: ModelWeights) -> str | None:
    """Why packing would not pay or not be possible, with the count of what does not fit; None where it pays."""
    if weights.embedding.dtype != torch.float16:
        return f"weights of {str(weights.embedding.dtype).removeprefix('torch.')} are not packed, float16 ones are"
    if weights.heads.query_width % GROUP or any(matrix.shape[1] % 8 for matrix in weights.matrices):
        return f"queries of {weights.heads.query_width} and hidden sizes that are no multiples of {GROUP} and 8"
    counts = [(count_exceptions(matrix), matrix.numel()) for matrix in map(plain_of, weights.matrices)]
    exceptions, total = (sum(column) for column in zip(*counts, strict=True))
    if exceptions > MOST_EXCEPTIONS * total:
        return f"{exceptions:,} of {total:,} weights do not fit twelve bits: they are not what was released in bfloat16"
    return None


def pack_weights(weights: ModelWeights) -> ModelWeights:
    """``weights`` with every matrix packed, one after another, and kept; raises CannotPack where one cannot be."""
    try:
        return replace(weights, layers=tuple(map(_pack_layer, weights.layers)), head=_pack(weights.head))
    except ValueError as error:
        raise CannotPack(str(error)) from None


def _pack_layer(layer: LayerWeights) -> LayerWeights:
    gate_up = _pack(layer.gate_up, merged=True)
    return replace(layer, qkv=_pack(layer.qkv), out=_pack(layer.out), gate_up=gate_up, down=_pack(layer.down))


def _pack(matrix: Matrix, *, merged: bool = False) -> PackedMatrix:
    return replace(pack(plain_of(matrix), merged=merged), plain=plain_of(matrix))


def _merge_layer(layer: nn.Module) -> LayerWeights:
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biased = attention.q_proj.bias is not None
    weights = LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),  # type: ignore[union-attr,operator]
        qkv=_merge([p.weight for p in projections]),
        qkv_bias=_merge([p.bias for p in projections]) if biased else None,
        head_norms=HeadNorms(_weight_of(attention, "q_norm"), _weight_of(attention, "k_norm")),
        out=attention.o_proj.weight.detach(),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),  # type: ignore[union-attr,operator]
        gate_up=_merge([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight.detach(),
    )
    if weights.qkv.device.type == "cuda":
        torch.cuda.empty_cache()  # the parts' blocks are too small for the next merged matrix
    return weights


def _merge(parts: list[nn.Parameter]) -> Tensor:
    """The parts' rows as one tensor, of which each part becomes a view; parts merged before are taken as they are."""
    rows = sum(part.shape[0] for part in parts)
    if (merged := _already_merged(parts, rows)) is not None:
        return merged
    merged = torch.empty((rows, *parts[0].shape[1:]), dtype=parts[0].dtype, device=parts[0].device)
    for part, view in zip(parts, merged.split([part.shape[0] for part in parts]), strict=True):
        view.copy_(part.detach())
        part.data = view
    return merged


def _already_merged(parts: list[nn.Parameter], rows: int) -> Tensor | None:
    first = parts[0]
    expected = first.data_ptr()
    for part in parts:
        if part.data_ptr() != expected or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        expected += part.numel() * part.element_size()
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def _weight_of(module: nn.Module, name: str) -> Tensor | None:
    found = getattr(module, name, None)
    return None if found is None else found.weight.detach()


def _require_covered(model: PreTrainedModel, config: Any) -> None:
    if reason := _not_covered(model, config):
        raise UserError(f"--forward fused does not cover {type(model).__name__} ({reason})")


def _not_covered(model: PreTrainedModel, config: Any) -> str | None:
    """What in ``model`` the fused forward would compute differently, or None."""
    if config.model_type not in COVERED:
        return f"model type {config.model_type}, not one of {', '.join(COVERED)}"
    if config.hidden_act not in ("silu", "swish"):
        return f"activation {config.hidden_act}"
    if (rope := length_dependent_rope(config)) is not None:
        return f"rope scaling {rope}, whose frequencies change with the length"
    layer = model.model.layers[0]
    if special := {type(part).__name__ for part in layer.modules() if _is_special_linear(part)}:
        return f"layers of type {', '.join(sorted(special))}"
    unmerged = {"o_proj": layer.self_attn.o_proj, "gate_proj": layer.mlp.gate_proj, "down_proj": layer.mlp.down_proj}
    if biased := [name for name, linear in unmerged.items() if linear.bias is not None]:
        return f"biases in {', '.join(biased)}"
    types = {p.dtype for p in model.parameters()}
    devices = {p.device for p in model.parameters()}
    if len(types) > 1 or len(devices) > 1:
        return f"weights of {len(types)} types on {len(devices)} devices"
    return None


def _is_special_linear(part: nn.Module) -> bool:
    """Whether ``part`` stands where a linear layer does and is another, as quantization leaves them."""
    return type(part) is not nn.Linear and (isinstance(part, nn.Linear) or hasattr(part, "in_features"))
