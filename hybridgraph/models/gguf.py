"""What transformers leaves out of a GGUF file: how far its rotary frequencies are scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridgraph.errors import UserError

FREQUENCY_FACTORS = "rope_freqs.weight"  # float32 [head_dim / 2]: divisors, as Llama 3.1 has them
LONG_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")


def apply_rope_scaling(module: nn.Module, path: Path) -> None:
    """Scale ``module``'s rotary frequencies as the GGUF file at ``path`` says.

    Raises UserError for a scaling that is more than that.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    if not (divisors := _divisors(reader)):
        return
    rotations = [part for part in module.modules() if isinstance(getattr(part, "inv_freq", None), Tensor)]
    if not rotations or any(getattr(part, "rope_type", "default") != "default" for part in rotations):
        return  # none, or one that transformers has read
    for rotation in rotations:
        for divisor in divisors:
            frequencies: Any = rotation.inv_freq
            if divisor.numel() not in (1, frequencies.numel()):
                raise UserError(
                    f"{path}: {FREQUENCY_FACTORS} has {divisor.numel()} factors for {frequencies.numel()} frequencies"
                )
            frequencies.div_(divisor.to(frequencies))


def _divisors(reader: Any) -> list[Tensor]:
    """What the file divides its frequencies by."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kind = _value(reader, "rope.scaling.type") or ("linear" if _value(reader, "rope.scale_linear") else "none")
    if kind not in ("none", "linear") or any(name in tensors for name in LONG_FACTORS):
        kind = kind if kind not in ("none", "linear") else "longrope"
        raise UserError(f"its rope scaling ({kind}) is not read from GGUF files: give the model as safetensors")
    divisors = []
    if kind == "linear":
        factor = _value(reader, "rope.scaling.factor") or _value(reader, "rope.scale_linear")
        divisors.append(torch.tensor(float(factor or 1.0)))
    if FREQUENCY_FACTORS in tensors:
        divisors.append(torch.tensor(tensors[FREQUENCY_FACTORS].data, dtype=torch.float32))
    return divisors


def _value(reader: Any, key: str) -> Any:
    """Of the architecture's numbers, the one called ``key``, or None."""
    architecture = reader.fields["general.architecture"].contents()
    field = reader.fields.get(f"{architecture}.{key}")
    return None if field is None else field.contents()
