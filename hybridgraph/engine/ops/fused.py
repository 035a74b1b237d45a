"""Dynamic operations with nothing before a request's replay, and one kernel after it.

Preprocessing is how the host packs the request: padded, in the order in which the graph fetches it. Draws are
made while the replay runs and travel as the kernel's arguments; the kernel writes the id where the next
decode step reads it and, over the bus, where the host does. A CPU samples as native does.
"""

from __future__ import annotations

import torch

from hybridgraph.contract import Request
from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.compilers import require_triton_compiles
from hybridgraph.engine.inputs import PackedInput
from hybridgraph.engine.ops import native
from hybridgraph.engine.ops.protocol import DynamicOps


class FusedOps(DynamicOps):
    """The functions of tensors are native's: who runs them on other buffers has these copies to make anyway."""

    def open_input(self, positions: int, device: torch.device) -> PackedInput:
        return PackedInput(positions, device)

    def compile(self, buffers: StaticBuffers) -> None:
        """As every implementation's; raises UserError where a GPU's kernels would be interpreted."""
        if buffers.logits.is_cuda:
            require_triton_compiles("ops fused")
        super().compile(buffers)

    def sample_step(self, request: Request, step: int, buffers: StaticBuffers) -> None:
        if step == 0:
            buffers.input.draw(request)
        if not buffers.logits.is_cuda:
            super().sample_step(request, step, buffers)
            return
        from hybridgraph.kernels.sampling import launch_greedy, launch_sample

        if request.temperature:
            launch_sample(buffers.logits, *buffers.input.draw_at(step), buffers.token, buffers.tokens_host, step)
        else:
            launch_greedy(buffers.logits, buffers.token, buffers.tokens_host, step)


OPS = FusedOps(preprocess=native.preprocess, sample=native.sample, greedy=native.greedy)
