"""The engine's static buffers: one address each for as long as the engine lives, so that graphs can hold them."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch import Tensor

from hybridgraph.contract import Request

LARGEST_UNIFORM = np.float32(1 - 2**-24)  # rounding to float32 can reach 1, which no draw may be


class StaticBuffers:
    """What a request passes through on its way in and out.

    A request reaches the device in one copy from pinned memory. Either it is laid out as the prefill reads it
    (``pack``), and every prefill begins with that copy (``fetch``); or it is staged together with its draws, for
    kernels to preprocess on the device (``stage``). The pinned memory is free again once an id of the answer was read.

    A client may be lent buffers to fill on the device itself (``adopt``); ``fetch`` never writes to those.
    """

    def __init__(
        self,
        *,
        positions: int,
        vocab_size: int,
        dtype: torch.dtype,
        device: torch.device,
        prefill_fetches_input: bool = False,
    ) -> None:
        pinned = device.type == "cuda"
        self.positions = positions
        self._fetches = prefill_fetches_input  # else ``stage`` and a kernel have brought it
        self._input = torch.zeros(positions + 2, dtype=torch.int64, device=device)
        self.ids = self._input[:positions]  # a prefill graph's input
        self.last = self._input[positions : positions + 1]  # index of the last real id
        self.start = self._input[positions + 1 :]  # index of the first id that the graph reads
        self.token = torch.zeros(1, dtype=torch.int64, device=device)  # a decode graph's input
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # where that token goes
        self.logits = torch.zeros(vocab_size, dtype=dtype, device=device)
        self._lent = torch.zeros_like(self._input) if prefill_fetches_input else self._input
        self.lent_ids, self.lent_last = self._lent[:positions], self._lent[positions : positions + 1]
        self._staging = torch.zeros(2 * positions, dtype=torch.int64, device=device)
        self.draws = _as_draws(self._staging)  # as they were staged
        self._input_host = torch.zeros(positions + 2, dtype=torch.int64, device="cpu", pin_memory=pinned)
        self._staging_host = torch.zeros(2 * positions, dtype=torch.int64, device="cpu", pin_memory=pinned)
        self.draws_host = _as_draws(self._staging_host)
        self.tokens_host = torch.zeros(positions, dtype=torch.int64, device="cpu", pin_memory=pinned)
        # NumPy's views of the same memory: writing a word through torch costs the host ten times as much.
        self._input_words = self._input_host.numpy()
        self._staging_words = self._staging_host.numpy()
        self._draws_words = self.draws_host.numpy()
        self._tokens_words = self.tokens_host.numpy()

    def pack(self, request: Request, length: int) -> None:
        """Lay the request out for ``fetch``: padded with id 0 to ``length``, read from its first id on."""
        num_ids, words = len(request.prompt_ids), self._input_words
        words[:num_ids] = request.prompt_ids
        if num_ids < length:
            words[num_ids:length] = 0
        words[self.positions :] = num_ids - 1, 0

    def fetch(self) -> None:
        """What every prefill begins with: bring all that was packed, whatever its length, in one copy.

        Captured, it costs a request nothing to launch; launched by itself it would cost the host 0.06 ms.
        Nothing where the input is staged.
        """
        if self._fetches:
            self._input.copy_(self._input_host, non_blocking=True)

    def point_at(self, start: int, last: int) -> None:
        """What runs next reads ids from ``start`` on, the last real one of which is ``last``."""
        if self._fetches:
            if self._input.is_cuda:
                torch.cuda.current_stream(self._input.device).synchronize()  # what was launched has fetched its own
            self._input_words[self.positions :] = last, start
        else:
            self.start.fill_(start)
            self.last.fill_(last)

    def point_back(self) -> None:
        """At the first id, on which who stages the next prompt counts; who packs it says so anyway."""
        if not self._fetches:
            self.start.zero_()

    def adopt(self, length: int) -> None:
        """Make the first ``length`` of ``lent_ids`` what runs next, and ``lent_last`` the index of the last of them."""
        if self._fetches:
            self._input_host.copy_(self._lent, non_blocking=True)
            self.lent_last.fill_(length - 1)
        self.point_at(0, length - 1)

    def stage(self, request: Request) -> Tensor:
        """Send the request's draws and ids to the device; returns the ids there, int64 [num_ids]."""
        num_draws = self.draw(request)
        end = num_draws + len(request.prompt_ids)
        self._staging_words[num_draws:end] = request.prompt_ids
        self._staging[:end].copy_(self._staging_host[:end], non_blocking=True)
        return self._staging[num_draws:end]

    def draw(self, request: Request) -> int:
        """Draw for every token of the answer, into ``draws_host``; returns for how many: a greedy one needs none."""
        if not request.temperature:
            return 0
        uniform = random.Random(request.seed).random
        draws = self._draws_words[: request.max_new_tokens]
        draws[:, 0] = request.temperature
        draws[:, 1] = [uniform() for _ in range(request.max_new_tokens)]
        np.minimum(draws[:, 1], LARGEST_UNIFORM, out=draws[:, 1])
        return request.max_new_tokens

    def draw_at(self, step: int) -> tuple[float, float]:
        """(temperature, uniform number) of the ``step``-th id, as ``draw`` left them on the host."""
        temperature, uniform = self._draws_words[step].tolist()
        return temperature, uniform

    def token_at(self, step: int) -> int:
        """The ``step``-th id of the answer, once its copy is done."""
        return int(self._tokens_words[step])


def overflowed(logits: Tensor) -> bool:
    """Whether ``logits`` are not all finite; waits for one kernel and one copy."""
    return not math.isfinite(logits.sum(dtype=torch.float32).item())


def _as_draws(staging: Tensor) -> Tensor:
    """The same memory as float32 [token, (temperature, uniform number)]."""
    return staging.view(torch.float32).view(-1, 2)
