"""Models: a name, a load format and a precision become a Hugging Face module on the device."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hybridgraph.config import DTYPES, LOAD_FORMATS
from hybridgraph.contract import SourceInfo
from hybridgraph.errors import UserError, one_line, shortened
from hybridgraph.machine.device import device_name
from hybridgraph.models.faults import in_our_words, tame_library_messages
from hybridgraph.models.gguf import apply_rope_scaling
from hybridgraph.models.hub import (
    configuration_in,
    file_in,
    is_gguf,
    local_directory,
    location_of,
    looking_up,
    numbers_of,
    special_ids,
)
from hybridgraph.models.numbers import positions_of, require_buildable, require_unquantized
from hybridgraph.roofline import ModelShape, Rates
from hybridgraph.system.console import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PretrainedConfig, PreTrainedModel

# Standard deviation of dummy weights: small enough that 32 layers stay finite in half precision.
DUMMY_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to run, and what identifies it."""

    module: PreTrainedModel
    name: str
    dtype: torch.dtype
    load_format: str
    device: torch.device
    shape: ModelShape | None
    special_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int:
        return int(self.module.config.get_text_config().vocab_size)

    @property
    def max_positions(self) -> int:
        """The longest sequence the architecture was made for; no limit known counts as a very long one."""
        return positions_of(self.module.config.get_text_config())

    def info(self, *, rates: Rates | None = None, environment: dict[str, Any] | None = None) -> SourceInfo:
        """What identifies the model, beside what its machine was found to be."""
        return SourceInfo(
            model=self.name,
            dtype=str(self.dtype).removeprefix("torch."),
            load_format=self.load_format,
            device=device_name(self.device),
            vocab_size=self.vocab_size,
            max_seq_len=self.max_positions,
            special_ids=self.special_ids,
            shape=self.shape,
            rates=rates,
            environment=environment or {},
        )


def device_called(name: str) -> torch.device:
    """The device of that name; raises UserError for one that no model is run on."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}': one of cpu, cuda, cuda:N")
    return device


def load_model(name: str, *, load_format: str, dtype: str, device: torch.device, seed: int) -> LoadedModel:
    """Load ``name``: a built-in shape, a local directory or, with load format ``auto``, a hub id or a GGUF file.

    Raises UserError, in one line, for a model that does not exist, is gated, does not fit the
    device, or whose files are unusable.
    """
    if load_format not in LOAD_FORMATS:
        raise UserError(f"load format '{load_format}': one of {', '.join(LOAD_FORMATS)}")
    if dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}': one of {', '.join(DTYPES)}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device '{device}': this machine has {count} usable NVIDIA GPUs (cpu runs without one)")
    tame_library_messages()
    numbers = numbers_of(name, load_format)
    require_buildable(numbers, name)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    if load_format == "dummy":
        require_unquantized(numbers | _quantization_beside(name), name)
        module = _dummy_module(_configuration(name, numbers), torch_dtype, device, seed)
    else:
        module = _real_module(name, torch_dtype, device)
    module.config.return_dict = True  # how its forward hands out what it computes is ours to say
    _require_runnable(module, name)
    module.train(False).requires_grad_(False)
    return LoadedModel(
        module=module,
        name=name,
        dtype=torch_dtype,
        load_format=load_format + (", dequantized" if is_gguf(name) else ""),
        device=device,
        shape=_checked_shape(module, dtype),
        special_ids=_special_ids(module),
    )


def _quantization_beside(name: str) -> dict[str, Any]:
    """What NVIDIA's ModelOpt leaves beside a ``config.json`` that does not announce what it did."""
    return configuration_in(name, "hf_quant_config.json", required=False) if local_directory(name) else {}


def _configuration(name: str, numbers: dict[str, Any]) -> PretrainedConfig:
    """transformers' configuration of the ``numbers`` in a ``config.json``, made without a network."""
    from transformers import AutoConfig

    numbers = dict(numbers)
    model_type = numbers.pop("model_type", None)
    if not isinstance(model_type, str):
        raise UserError(f"{name}/config.json has no model_type: it is no Hugging Face model configuration")
    try:
        return AutoConfig.for_model(model_type, **numbers)
    except Exception as error:
        # Whatever a configuration class objects to is a fault of the file's values.
        raise UserError(f"{name}/config.json: {in_our_words(error)}") from None


def _dummy_module(config: PretrainedConfig, dtype: torch.dtype, device: torch.device, seed: int) -> PreTrainedModel:
    """The architecture with seeded weights, made on the device in the target precision.

    The module is built without storage, so no weight passes through host memory or float32, and every parameter is
    drawn in name order from one generator and rounded to bfloat16, the precision of released models. Buffers (rotary
    frequencies, masks) are computed, not drawn, and move over as they are.
    """
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device
    from transformers import AutoModelForCausalLM

    try:
        with init_empty_weights(include_buffers=False):
            module = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"no causal language model can be built of this config.json: {in_our_words(error)}") from None
    with oom_as_user_error(device):
        generator = torch.Generator(device=device).manual_seed(seed)
        for name, parameter in sorted(module.named_parameters()):
            weight = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            is_norm = weight.dim() == 1 and not name.endswith("bias")
            weight.normal_(1.0 if is_norm else 0.0, DUMMY_STD, generator=generator)
            weight.copy_(weight.bfloat16())  # as precise as those of released models
            set_module_tensor_to_device(module, name, device, value=weight)
        for name, buffer in module.named_buffers():
            set_module_tensor_to_device(module, name, device, value=buffer)
    module.tie_weights()
    return module


def _real_module(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Real weights: safetensors only (or one GGUF file), never code from the model's repository."""
    from transformers import AutoModelForCausalLM

    location, file = location_of(name)
    with looking_up(name), oom_as_user_error(device):
        module, found = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            trust_remote_code=False,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below
            **(file or {"use_safetensors": True}),
        )
        if file:
            apply_rope_scaling(module, file_in(location, file["gguf_file"]))
    _require_placed(module, name, found)
    return module


def _require_placed(module: PreTrainedModel, name: str, found: Mapping[str, Any]) -> None:
    """Raise UserError where the model's files and its modules do not hold the same weights.

    What transformers has ``found``: it would go on with random numbers in the place of some, and without others.
    """
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"model '{name}' is incomplete: its files lack {len(missing)} weights, such as {missing[0]}")
    if mismatched := sorted(found["mismatched_keys"]):
        key, stored, built = mismatched[0]
        raise UserError(f"model '{name}': {key} is {list(stored)} in its files, {list(built)} by its config.json")
    parents = {parameter.rpartition(".")[0] for parameter, _ in module.named_parameters()}
    unexpected = sorted(found["unexpected_keys"])
    if beside := [key for key in unexpected if key.rpartition(".")[0] in parents]:
        raise UserError(
            f"model '{name}': its files hold {len(beside)} numbers beside the weights, such as {beside[0]}, which "
            "its config.json does not announce (scales of quantized weights?): it would compute something else"
        )
    if unexpected:
        example = shortened(unexpected[0])
        say(f"model '{shortened(name)}': {len(unexpected)} weights of its files have no place in it, such as {example}")


@contextmanager
def oom_as_user_error(device: torch.device) -> Iterator[None]:
    """Tell a device that is too small for the model in one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        where = device if isinstance(error, torch.OutOfMemoryError) else "this machine"
        raise UserError(f"{where} has too little memory for this model: {one_line(error)}") from None


def _is_out_of_memory(error: Exception) -> bool:
    told = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return told or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _require_runnable(module: PreTrainedModel, name: str) -> None:
    """Raise UserError for numbers that a module can be built of, and cannot run with."""
    config = module.config.get_text_config()
    numbers = config.to_dict()
    heads, groups = numbers.get("num_attention_heads"), numbers.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and groups and heads % groups:
        raise UserError(f"{name}: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
    vocab_size = getattr(config, "vocab_size", None)
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise UserError(f"{name}: vocab_size {vocab_size} is no vocabulary")


def _checked_shape(module: PreTrainedModel, dtype: str) -> ModelShape | None:
    """The model's shape, or None where the formula's weights are not the weights the module holds."""
    config = module.config.get_text_config()
    shape = ModelShape.from_config(config.to_dict(), dtype)
    if shape is None:
        return None
    counted = shape.num_layers * shape.layer_params + shape.head_params
    if not getattr(config, "tie_word_embeddings", False):
        counted += shape.vocab_size * shape.hidden_size
    held = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)
    return shape if held == counted else None


def _special_ids(module: PreTrainedModel) -> tuple[int, ...]:
    configurations = (module.config.get_text_config(), module.generation_config)
    return special_ids(*(configuration.to_dict() for configuration in configurations if configuration))
