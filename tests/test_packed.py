"""Packed weights: every float16 pattern comes back bit for bit, and what twelve bits do not hold is counted."""

import random

import pytest
import torch
from torch import Tensor

from hybridgraph.kernels import packed
from hybridgraph.kernels.packed import count_exceptions, is_exception, pack, unpack

SHAPES = [(16, 64), (48, 128), (20, 64), (16, 70), (5, 3), (34, 200)]


def every_pattern() -> Tensor:
    """All 65,536 float16 patterns, in order."""
    return torch.arange(1 << 16).to(torch.int16).view(torch.float16)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


def bfloat16_weights(*shape: int, std: float = 0.02) -> Tensor:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(std).bfloat16().half()


def test_pack_of_every_float16_pattern_is_exact() -> None:
    patterns = every_pattern()
    possible = patterns[patterns.float().abs() <= packed.LARGEST]
    weight = torch.cat((possible, possible.new_zeros(-possible.numel() % 256))).view(-1, 256)
    assert same_bits(unpack(pack(weight)), weight)


def test_exceptions_are_exactly_the_patterns_that_bfloat16_does_not_make_or_that_are_large() -> None:
    patterns = every_pattern()
    held = patterns[~is_exception(patterns)]
    assert held.numel() == 1 << 12, "twelve bits hold as many, each in one way"
    assert held.isfinite().all() and held.abs().max() < 0.25
    small = (torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16)).half()
    small = small[small.float().abs() < 0.25]
    assert not is_exception(small).any(), "subnormals and both zeros are held, too"
    assert set(held.view(torch.int16).tolist()) == set(small.view(torch.int16).tolist())


@pytest.mark.parametrize("merged", [False, True], ids=["plain", "merged"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpack_of_any_shape_is_the_original(shape: tuple[int, int], merged: bool) -> None:
    if merged and shape[0] % 2:
        pytest.skip("no two halves")
    weight = bfloat16_weights(*shape)
    weight.view(-1)[:: max(1, weight.numel() // 7)] = 1.2345  # exceptions
    matrix = pack(weight, merged=merged)
    assert matrix.shape == shape and matrix.num_exceptions == count_exceptions(weight) > 0
    assert same_bits(unpack(matrix), weight)


@pytest.mark.parametrize("rows", [16, 32, 40])
def test_first_rows_are_those_of_the_original(rows: int) -> None:
    weight = bfloat16_weights(64, 128)
    weight[::9, ::7] = 0.5
    assert same_bits(unpack(pack(weight).first_rows(rows)), weight[:rows])


def test_a_tile_is_contiguous_and_takes_twelve_bits_a_weight() -> None:
    matrix = pack(bfloat16_weights(32, 192))
    assert matrix.words.shape == (2, 3, 3, 32, 4) and matrix.words.is_contiguous()
    assert matrix.words[0, 0].numel() * 4 == packed.TILE_BYTES == 16 * 64 * 12 // 8
    assert matrix.num_bytes == 32 * 192 * 12 // 8, "no exceptions, nothing else to read"


def test_fragments_lie_as_the_tensor_cores_want_them() -> None:
    """PTX ISA, m16n8k16: registers 0 and 2 hold row l / 4, columns 2 (l % 4) and 8 more; 1 and 3 hold row l / 4 + 8."""
    weight = torch.arange(16 * 64).view(16, 64).half()
    fragments = packed._fragments(weight, merged=False)[0, 0]
    for step in range(4):
        for register in range(4):
            for lane in range(32):
                row = 2 * (lane // 4) + register % 2  # neighbours are 8 apart in the fragment
                column = 16 * step + 2 * (lane % 4) + 8 * (register // 2)
                assert fragments[4 * step + register, lane].tolist() == weight[row, column : column + 2].tolist()


def test_full_mantissas_are_counted() -> None:
    weight = torch.randn(64, 64).half()
    expected = sum(abs(w) >= 0.25 or (w * 8).half().view(torch.int16).item() & 7 != 0 for w in weight.flatten())
    assert count_exceptions(weight) == expected > 3000


@pytest.mark.parametrize(
    ("weight", "merged", "reason"),
    [
        (torch.zeros(16, 64), False, "float32"),
        (torch.zeros(4).half(), False, "1 dimensions"),
        (torch.zeros(15, 64).half(), True, "15 rows"),
        (torch.full((16, 64), torch.nan).half(), False, "not finite"),
        (torch.full((16, 64), 9000.0).half(), False, "8188"),
    ],
)
def test_pack_of_what_cannot_be_packed_raises(weight: Tensor, merged: bool, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pack(weight, merged=merged)
