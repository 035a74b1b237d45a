"""Twelve bits a weight, and every weight exactly what it was: the format, in plain PyTorch.

Nearly every model of today was trained and released in bfloat16, so its float16 weights have 8 significant bits, and
nearly all are less than 1/4. Times 8, such a weight in float16 is ``s 0eeee mmmmmmm000``: sign, four bits of exponent,
seven of mantissa, zero and subnormals included. The other four bits of each are left out. A weight that is not so is an
*exception*: 0 stands in its place, and it is listed. ``unpack(pack(w))`` is ``w``, bit for bit.

**Layout.** The matrix lies in tiles of 16 rows by 64 columns, 1,536 bytes each, a group of rows after another and
along its columns: what a kernel reads at once is contiguous. Rows and columns are padded with zeros.

Within a tile, lane l of a warp holds what the tensor cores want of it (PTX ISA, fragment A of m16n8k16 and of wgmma):
for each 16 columns four registers of two halves, of rows ``l // 4`` and 8 more and of columns ``2 * (l % 4)`` and 8
more. Three of the four lie in three words as they are, and the fourth's bits fill what is free in these: fifteen
integer operations unpack eight weights. The rows that a thread has both of, 8 apart in the tile, are two neighbours;
of a merged gate and up projection, the rows of gate and of up that belong together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

GROUP = 16  # rows of a tile
STEP = 64  # columns of a tile
PACKED_BITS = 12
TILE_BYTES = GROUP * STEP * PACKED_BITS // 8
SCALE = 8.0  # what is packed is the weight times this
LARGEST = 65504.0 / SCALE  # an exception's limit: times SCALE it is a float16, too
IN_PLACE = 0xBFF8  # bits of a half that are kept where they are: sign, four of the exponent, seven of the mantissa
FREE = 0x4007
# The fourth register's bits in the free ones of the three words: (word, where there, where in the register, how many).
SPREAD = ((0, 14, 15, 1), (0, 0, 11, 3), (1, 0, 8, 3), (2, 0, 5, 3), (1, 14, 4, 1), (2, 14, 3, 1))


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix [rows, columns] of float16 weights, packed.

    ``words``: int32 [groups, steps, 3, 32, 4], a lane's 12 words in three pieces of 16 bytes. ``exceptions``: int32
    [n], a tile after another, each ``place << 16 | bits of SCALE * weight``; a place is ``register << 6 | lane << 1 |
    half`` with registers 0 to 15 of a tile. ``starts``: int32 [tiles + 1], where each tile's exceptions begin.
    ``plain``: the same matrix as it was, where it is kept for what is quicker with it.
    """

    words: Tensor
    exceptions: Tensor
    starts: Tensor
    shape: tuple[int, int]
    merged: bool  # gate and up: the matrix is two of ``rows // 2``
    plain: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.words.device

    @property
    def num_exceptions(self) -> int:
        """Those of the whole matrix, also where this is a part of its rows."""
        return self.exceptions.numel()

    @property
    def num_bytes(self) -> int:
        """Bytes that a kernel reads of it."""
        listed = self.exceptions.numel() + self.starts.numel() if self.num_exceptions else 0
        return 4 * (self.words.numel() + listed)

    def __getitem__(self, rows: slice) -> PackedMatrix:
        """Some of its rows on the same storage; the first one begins a group, and merged matrices have none."""
        first, end, _ = rows.indices(self.shape[0])
        assert not self.merged and first % GROUP == 0, f"rows {first} to {end} are no groups"
        groups, steps = slice(first // GROUP, math.ceil(end / GROUP)), self.words.shape[1]
        return replace(
            self,
            words=self.words[groups],
            starts=self.starts[groups.start * steps : groups.stop * steps + 1],
            shape=(end - first, self.shape[1]),
            plain=None if self.plain is None else self.plain[rows],
        )


def is_exception(weights: Tensor) -> Tensor:
    """Where twelve bits do not hold a float16 weight: too large, too many significant bits, or no number."""
    return (weights * SCALE).view(torch.int16) & FREE != 0


def count_exceptions(weight: Tensor) -> int:
    """How many of ``weight``, float16, twelve bits do not hold."""
    return sum(int(is_exception(rows).sum()) for rows in weight.split(1024))


def pack(weight: Tensor, *, merged: bool = False) -> PackedMatrix:
    """Pack float16 [rows, columns], ``merged`` of gate and up; raises ValueError for what cannot be packed.

    Any number of exceptions is packed exactly; whether few enough are for packing to pay is the caller's to judge.
    """
    if weight.dtype != torch.float16 or weight.dim() != 2:
        raise ValueError(f"weights of {weight.dtype} in {weight.dim()} dimensions: float16 matrices are packed")
    if merged and weight.shape[0] % 2:
        raise ValueError(f"{weight.shape[0]} rows are no two halves")
    halves = _fragments(weight, merged)
    if not (halves.float().abs() <= LARGEST).all():
        raise ValueError(f"weights beyond ±{LARGEST:g} or not finite cannot be packed")
    listed = is_exception(halves)
    bits = (halves * SCALE).view(torch.int16).int() & 0xFFFF
    at = listed.flatten().nonzero().squeeze(1)
    tiles = halves.shape[0] * halves.shape[1]
    counts = torch.bincount(at // (GROUP * STEP), minlength=tiles)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
    exceptions = (at % (GROUP * STEP)).int() << 16 | bits.flatten()[at]
    words = _words(bits.masked_fill(listed, 0))
    return PackedMatrix(words, exceptions, starts, (weight.shape[0], weight.shape[1]), merged)


def unpack(packed: PackedMatrix) -> Tensor:
    """The matrix that was packed, float16 [rows, columns]."""
    bits = _bits(packed.words).flatten()
    counts = packed.starts.diff()
    tile = torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts)
    exceptions = packed.exceptions[packed.starts[0] : packed.starts[-1]]
    bits[tile * (GROUP * STEP) + (exceptions >> 16)] = exceptions & 0xFFFF
    groups, steps = packed.words.shape[:2]
    halves = bits.view(groups, steps, 16, 32, 2).to(torch.int16).view(torch.float16) / SCALE
    return _matrix(halves, packed)


def _fragments(weight: Tensor, merged: bool) -> Tensor:
    """[groups, steps, registers, lanes, halves] of a matrix, zeros where it is padded."""
    parts = weight.chunk(2) if merged else (weight[0::2], weight[1::2])  # rows 0 to 7 of each group, and 8 to 15
    groups, steps = math.ceil(max(part.shape[0] for part in parts) / 8), math.ceil(weight.shape[1] / STEP)
    padded = weight.new_zeros(2, groups * 8, steps * STEP)
    for target, part in zip(padded, parts, strict=True):
        target[: part.shape[0], : part.shape[1]] = part
    # part, group, row of 8, step, 16 columns, 8 columns, pair, half -> group, step, (16 columns, 8 columns, part), …
    return (
        padded.view(2, groups, 8, steps, 4, 2, 4, 2).permute(1, 3, 4, 5, 0, 2, 6, 7).reshape(groups, steps, 16, 32, 2)
    )


def _matrix(halves: Tensor, packed: PackedMatrix) -> Tensor:
    """The inverse of ``_fragments``."""
    groups, steps = halves.shape[:2]
    parts = halves.view(groups, steps, 4, 2, 2, 8, 4, 2).permute(4, 0, 5, 1, 2, 3, 6, 7)
    parts = parts.reshape(2, groups * 8, steps * STEP)
    rows, columns = packed.shape
    if packed.merged:
        return parts[:, : rows // 2, :columns].reshape(rows, columns)
    return parts.transpose(0, 1).reshape(groups * GROUP, steps * STEP)[:rows, :columns].contiguous()


def _words(bits: Tensor) -> Tensor:
    """int32 [groups, steps, 3, 32, 4] of halves' bits [groups, steps, 16, 32, 2]."""
    groups, steps = bits.shape[:2]
    registers = bits.view(groups, steps, 4, 4, 32, 2)
    kept, fourth = list(registers[:, :, :, :3].unbind(3)), registers[:, :, :, 3]
    for word, there, here, count in SPREAD:
        kept[word] = kept[word] | (fourth >> here & (1 << count) - 1) << there
    low, high = torch.stack(kept, 3).unbind(-1)
    # A lane's words, in order of its registers: [groups, steps, 12, 32] -> three pieces of four.
    words = (low | high << 16).reshape(groups, steps, 3, 4, 32)
    return words.transpose(3, 4).contiguous()


def _bits(words: Tensor) -> Tensor:
    """The inverse of ``_words``: int32 [groups, steps, 16, 32, 2]."""
    groups, steps = words.shape[:2]
    words = words.transpose(3, 4).reshape(groups, steps, 4, 3, 32)
    pairs = torch.stack((words & 0xFFFF, words >> 16 & 0xFFFF), -1)
    fourth = torch.zeros_like(pairs[:, :, :, 0])
    for word, there, here, count in SPREAD:
        fourth |= (pairs[:, :, :, word] >> there & (1 << count) - 1) << here
    return torch.cat((pairs & IN_PLACE, fourth[:, :, :, None]), 3).reshape(groups, steps, 16, 32, 2)
