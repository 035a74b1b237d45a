"""Dynamic operations with nothing before a request's replay, and one kernel after it.

Preprocessing is how the host packs the request: padded, in the order in which the graph fetches it. Draws are
made while the replay runs and travel as the kernel's arguments; the kernel writes the id where the next
decode step reads it and, over the bus, where the host does. A CPU samples as native does.
"""

from __future__ import annotations

from hybridgraph.contract import Request
from hybridgraph.engine.buffers import StaticBuffers
from hybridgraph.engine.ops import native
from hybridgraph.engine.ops.protocol import DynamicOps


class FusedOps(DynamicOps):
    """The functions of tensors are native's: who runs them on other buffers has these copies to make anyway."""

    prefill_fetches_input = True

    def place(self, request: Request, length: int, buffers: StaticBuffers) -> None:
        buffers.pack(request, length)

    def choose(self, request: Request, step: int, buffers: StaticBuffers) -> None:
        if step == 0:
            buffers.draw(request)
        if not buffers.logits.is_cuda:
            self._choose(request, step, buffers, buffers.draws_host)
            return
        from hybridgraph.kernels.sampling import launch_greedy, launch_sample

        if request.temperature:
            launch_sample(buffers.logits, *buffers.draw_at(step), buffers.token, buffers.tokens_host, step)
        else:
            launch_greedy(buffers.logits, buffers.token, buffers.tokens_host, step)


OPS = FusedOps(preprocess=native.preprocess, sample=native.sample, greedy=native.greedy)
