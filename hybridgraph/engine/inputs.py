"""How a prompt reaches what a prefill reads: laid out on the host and fetched, or staged and put in place by a kernel.

Either way a request crosses to the device in one copy from pinned memory, which is free again once an id of the
answer was read. A client may be lent ``lent_ids`` and ``lent_last`` to fill on the device itself.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hybridgraph.contract import Request

LARGEST_UNIFORM = np.float32(1 - 2**-24)  # rounding to float32 can reach 1, which no draw may be

Preprocess = Callable[[Tensor, Tensor, Tensor], None]  # of (staged, static, last): see DynamicOps


class PromptInput(ABC):
    """What a prefill reads, at one address each: ``ids`` int64 [positions], ``last`` and ``start`` int64 [1].

    ``last`` is the index of the prompt's last id, ``start`` that of the first id to run. ``draws`` float32
    [positions, 2] holds temperature and uniform number of each id of the answer, where a sampling function reads them.
    """

    draws: Tensor
    lent_ids: Tensor
    lent_last: Tensor

    def __init__(self, positions: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.positions = positions
        self._static = torch.zeros(positions + 2, dtype=torch.int64, device=device)
        self.ids, self.last, self.start = self._static.split((positions, 1, 1))
        self._host = torch.zeros(2 * positions, dtype=torch.int64, device="cpu", pin_memory=pinned)
        # NumPy's views of the same memory: writing a word through torch costs the host ten times as much.
        self._words = self._host.numpy()
        self._draw_words = _as_draws(self._host).numpy()

    @abstractmethod
    def place(self, request: Request, length: int) -> None:
        """Bring the prompt, padded with id 0 to ``length``, to where the next prefill reads it, or fetches it from."""

    @abstractmethod
    def fetch(self) -> None:
        """Do what every prefill begins with, and a graph captures."""

    @abstractmethod
    def point_at(self, start: int, last: int) -> None:
        """Make what runs next read ids from ``start`` on, the last one of which is ``last``."""

    @abstractmethod
    def point_back(self) -> None:
        """Undo ``point_at``, where the next ``place`` counts on it."""

    @abstractmethod
    def adopt(self, length: int) -> None:
        """Make the first ``length`` of ``lent_ids`` the prompt, and ``lent_last`` the index of the last of them."""

    def draw(self, request: Request) -> int:
        """Draw for every id of the answer, on the host; returns for how many: a greedy one needs none."""
        if not request.temperature:
            return 0
        uniform = random.Random(request.seed).random
        draws = self._draw_words[: request.max_new_tokens]
        draws[:, 0] = request.temperature
        draws[:, 1] = [uniform() for _ in range(request.max_new_tokens)]
        np.minimum(draws[:, 1], LARGEST_UNIFORM, out=draws[:, 1])
        return request.max_new_tokens

    def draw_at(self, step: int) -> tuple[float, float]:
        """(temperature, uniform number) of the ``step``-th id, as ``draw`` left them on the host."""
        temperature, uniform = self._draw_words[step].tolist()
        return temperature, uniform


class StagedInput(PromptInput):
    """Sends ids and draws as they are; ``preprocess`` copies the ids into place and pads them, on the device."""

    def __init__(self, positions: int, device: torch.device, preprocess: Preprocess) -> None:
        super().__init__(positions, device)
        self._preprocess = preprocess
        self._staging = torch.zeros_like(self._host, device=device)
        self.draws = _as_draws(self._staging)
        self.lent_ids, self.lent_last = self.ids, self.last

    def place(self, request: Request, length: int) -> None:
        self._preprocess(self.stage(request), self.ids[:length], self.last)

    def stage(self, request: Request) -> Tensor:
        """Send the request's draws and ids to the device; returns the ids there, int64 [num_ids]."""
        num_draws = self.draw(request)
        end = num_draws + len(request.prompt_ids)
        self._words[num_draws:end] = request.prompt_ids
        self._staging[:end].copy_(self._host[:end], non_blocking=True)
        return self._staging[num_draws:end]

    def fetch(self) -> None:
        """Nothing: ``place`` has brought the prompt."""

    def point_at(self, start: int, last: int) -> None:
        self.start.fill_(start)
        self.last.fill_(last)

    def point_back(self) -> None:
        self.start.zero_()

    def adopt(self, length: int) -> None:
        self.point_at(0, length - 1)


class PackedInput(PromptInput):
    """Lays the prompt out on the host as a prefill reads it; every prefill begins with one copy of all of it.

    Captured, that copy costs a request nothing to launch; launched by itself it would cost the host 0.06 ms. It never
    writes to what is lent.
    """

    def __init__(self, positions: int, device: torch.device) -> None:
        super().__init__(positions, device)
        self._packed = torch.zeros(positions + 2, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
        self._packed_words = self._packed.numpy()
        self._lent = torch.zeros_like(self._static)
        self.draws = _as_draws(self._host)
        self.lent_ids, self.lent_last = self._lent[:positions], self._lent[positions : positions + 1]

    def place(self, request: Request, length: int) -> None:
        num_ids, words = len(request.prompt_ids), self._packed_words
        words[:num_ids] = request.prompt_ids
        if num_ids < length:
            words[num_ids:length] = 0
        words[self.positions :] = num_ids - 1, 0

    def fetch(self) -> None:
        self._static.copy_(self._packed, non_blocking=True)

    def point_at(self, start: int, last: int) -> None:
        if self._static.is_cuda:
            torch.cuda.current_stream(self._static.device).synchronize()  # what was launched has fetched its own
        self._packed_words[self.positions :] = last, start

    def point_back(self) -> None:
        """Nothing: the next ``place`` says where it begins."""

    def adopt(self, length: int) -> None:
        self._packed.copy_(self._lent, non_blocking=True)
        self.lent_last.fill_(length - 1)
        self.point_at(0, length - 1)


def _as_draws(words: Tensor) -> Tensor:
    """The same memory as float32 [id, (temperature, uniform number)]."""
    return words.view(torch.float32).view(-1, 2)
