"""Compile every Triton kernel for Hopper chips, the forward's with overlapping launches, on a machine without a GPU.

python tests/compile_for_hopper.py    # prints the kernels' names; TRITON_INTERPRET must not be set
"""

from typing import Any

import torch
from architectures import ARCHITECTURES, SMALL
from transformers import AutoConfig, AutoModelForCausalLM
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.kernels.portable import TritonKernels
from hybridgraph.kernels.sampling import BLOCK, NUM_WARPS, greedy_kernel, sample_kernel


class HopperDriver:
    """What Triton asks a driver for before it launches anything."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


class CompiledOnly(TritonKernels):
    """Kernels that are compiled for the arguments they are called with, and not run."""

    def __init__(self) -> None:
        super().__init__(overlap=True)
        self.names: set[str] = set()

    def _launch(self, kernel: Any, grid: tuple[int, ...], tensors: tuple[Any, ...], **numbers: Any) -> None:
        compiled = kernel.warmup(*tensors, grid=grid, PDL=True, launch_pdl=True, **numbers)
        name = kernel.__name__
        assert "griddepcontrol.wait" in compiled.asm["ptx"], f"{name} does not wait for what it reads"
        assert "griddepcontrol.launch_dependents" in compiled.asm["ptx"], f"{name} holds the next kernel back"
        self.names.add(name)


def compile_sampling() -> set[str]:
    """The kernels behind the graphs, for a vocabulary of several chunks; returns their names."""
    logits = torch.empty(2 * BLOCK + 5, dtype=torch.float16)
    token, token_host = torch.zeros(1, dtype=torch.long), torch.zeros(20, dtype=torch.long)
    numbers: dict[str, Any] = {"VOCAB": logits.numel(), "BLOCK": BLOCK, "num_warps": NUM_WARPS}
    sample_kernel.warmup(logits, 0.7, 0.5, token, token_host, 3, BLOCKS=4, grid=(1,), **numbers)
    greedy_kernel.warmup(logits, token, token_host, 3, grid=(1,), **numbers)
    return {"sample_kernel", "greedy_kernel"}


@torch.inference_mode()
def main() -> None:
    driver.set_active(HopperDriver())
    kernels = CompiledOnly()
    for name in ("llama-gqa", "qwen2", "qwen3"):  # grouped heads, biases, head norms
        config = AutoConfig.for_model(**(SMALL | ARCHITECTURES[name]))
        forward = FusedForward(AutoModelForCausalLM.from_config(config, dtype=torch.float16), kernels)
        cache, logits = forward.allocate_cache(256), torch.empty(500, dtype=torch.float16)
        for length in (10, 100, 200):  # one of each block of attention
            ids, start, last = torch.zeros(length, dtype=torch.long), torch.tensor([0]), torch.tensor([length - 1])
            forward.prefill(ids, length, start, last, cache, logits)
        forward.decode(torch.zeros(1, dtype=torch.long), torch.tensor([200]), cache, logits)
    hidden = torch.zeros(100, 4096, dtype=torch.float16)
    kernels.add_norm(hidden, hidden.new_zeros(4, 100, 4096), hidden[0], 1e-5)
    kernels.one_row_linear(hidden[:1], hidden[0], 1e-5, hidden[:1], None)  # a count of 1 is a constant for Triton
    print(*sorted(kernels.names | compile_sampling()))


if __name__ == "__main__":
    main()
