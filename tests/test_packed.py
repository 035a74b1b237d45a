"""Packed weights: every float16 pattern comes back bit for bit, and what twelve bits do not hold is counted."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridgraph.kernels import packed
from hybridgraph.kernels.heuristics import limits_on
from hybridgraph.kernels.hopper import kernels
from hybridgraph.kernels.hopper.gemm import Epilogue, Gemm, program_of, tile_for
from hybridgraph.kernels.hopper.gemv import Gemv
from hybridgraph.kernels.hopper.gemv import program_of as gemv_program
from hybridgraph.kernels.hopper.kernels import HopperKernels
from hybridgraph.kernels.hopper.nvrtc import compile_program
from hybridgraph.kernels.packed import count_exceptions, is_exception, pack, unpack
from hybridgraph.kernels.reference import ReferenceKernels

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


@pytest.mark.parametrize("rows", [slice(16), slice(32), slice(40), slice(16, None), slice(48, 61)], ids=str)
def test_rows_of_a_packed_matrix_are_those_of_the_original(rows: slice) -> None:
    weight = bfloat16_weights(64, 128)
    weight[::9, ::7] = 0.5
    part = replace(pack(weight), plain=weight)[rows]
    assert same_bits(unpack(part), weight[rows])
    assert part.plain is not None and same_bits(part.plain, weight[rows]) and part.shape == weight[rows].shape


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


# --- on Hopper -----------------------------------------------------------------------------------

EPS = 1e-5
# Llama-2-7B's qkv, out, down and head; then few tiles, padded rows and columns.
MATRICES = [(12288, 4096), (4096, 4096), (4096, 11008), (32000, 4096), (50, 200), (336, 1000), (16, 64), (1152, 896)]


@pytest.mark.parametrize("exceptions", [False, True])
@pytest.mark.parametrize("columns", [64, 200, 4096, 11008, 14336])
def test_gemv_of_any_columns_compiles(columns: int, exceptions: bool) -> None:
    for norm, bias, add, swiglu in (
        (True, True, False, False),
        (False, False, True, False),
        (True, False, False, True),
    ):
        gemv = Gemv(columns, swiglu=swiglu, norm=norm, bias=bias, add=add, exceptions=exceptions)
        assert 114 * 1024 < gemv.shared_bytes <= 227 * 1024, "no two blocks share a multiprocessor"
        assert compile_program(gemv_program(gemv)).startswith(b"\x7fELF")


@pytest.mark.parametrize("exceptions", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 16, 50, 100, 128, 150])
@pytest.mark.parametrize(("epilogue", "warpgroups"), [("store_swiglu", 3), ("store_partial", 1), ("store_partial", 2)])
def test_packed_gemm_compiles(num_tokens: int, epilogue: Epilogue, warpgroups: int, exceptions: bool) -> None:
    """And the tensor cores' instructions do not wait for each other, which the compiler tells and is refused."""
    tile = tile_for(num_tokens, warpgroups, packed=True, exceptions=exceptions)
    assert tile.stages >= 4
    assert compile_program(program_of(epilogue, tile, torch.float16)).startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("num_rows", "keeps_plain", "expected"),
    [
        (1, True, "packed"),
        (80, True, "packed"),
        (81, True, "plain"),
        (240, True, "plain"),
        (241, True, None),
        (150, False, "packed"),
    ],
)
def test_swiglu_reads_the_form_that_was_measured_to_be_quicker(
    num_rows: int, keeps_plain: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 132)
    weight = bfloat16_weights(256, 64)
    matrix = replace(pack(weight, merged=True), plain=weight if keeps_plain else None)
    found = HopperKernels(limits_on("H200"))._swiglu(num_rows, matrix)
    assert (found and ("plain" if found[1] is weight else "packed")) == expected
    assert found is None or found[0].tile.packed == (expected == "packed")


@pytest.mark.parametrize("exceptions", [False, True])
def test_prepare_compiles_what_packed_rows_need(
    exceptions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 132)
    qkv, gate_up, down = (bfloat16_weights(*shape) for shape in ((192, 64), (256, 64), (64, 128)))
    for weight in (qkv, gate_up, down):
        weight[0, 0] = 0.5 if exceptions else 0.0
    forms = pack(qkv), pack(gate_up, merged=True), [pack(down)]
    HopperKernels(limits_on("H200")).prepare([], *forms)
    assert len(list(tmp_path.rglob("kernel.cubin"))) == 3


@pytest.fixture
def hopper() -> HopperKernels:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    return HopperKernels(limits_on("H200"))


def with_exceptions(weight: Tensor, share: float) -> Tensor:
    at = torch.rand(weight.shape, device=weight.device) < share
    return torch.where(at, torch.randn_like(weight), weight)


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.05, 1.0])
@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_gemv_of_small_integers_is_exact(hopper: HopperKernels, shape: tuple[int, int], share: float) -> None:
    """Every order of such sums is exact in float32: one right answer."""
    weight = (torch.randint(-15, 16, shape, device="cuda") / 64).half()
    if share:
        large = torch.rand(shape, device="cuda") < share
        weight = torch.where(large, (torch.randint(-15, 16, shape, device="cuda") * 2).half(), weight)
    row = torch.randint(-8, 9, (1, shape[1]), device="cuda").half()
    hidden = torch.randint(-8, 9, (1, shape[0]), device="cuda").half()
    expected = (hidden.double() + row.double() @ weight.double().T).half()
    matrix = pack(weight)
    assert torch.equal(unpack(matrix), weight)
    hopper.one_row_add(hidden, row, matrix)
    assert torch.equal(hidden, expected)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.0, 1e-3])
@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_packed_rows_are_no_further_from_float64_than_plain_ones(
    hopper: HopperKernels, shape: tuple[int, int], share: float
) -> None:
    weight = with_exceptions((torch.randn(shape, device="cuda") * 0.02).bfloat16().half(), share)
    hidden, norm = torch.randn(1, shape[1], device="cuda").half() * 3, torch.rand(shape[1], device="cuda").half() + 0.5
    bias = torch.randn(shape[0], device="cuda").half()
    normed = hidden.double() * torch.rsqrt(hidden.double().square().mean() + EPS) * norm.double()
    expected = normed @ weight.double().T + bias.double()
    matrix = pack(weight)
    plain, ours = (hopper.one_row_linear(hidden, norm, EPS, of, bias) for of in (weight, matrix))
    assert error(ours, expected) <= 1.02 * error(plain, expected) < 1e-3
    first = shape[0] // 32 * 16
    if first:
        part = hopper.one_row_linear(hidden, norm, EPS, matrix[:first], None)
        assert error(part, expected[:, :first] - bias[:first].double()) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.0, 1e-3])
@pytest.mark.parametrize(("inner", "width"), [(11008, 4096), (1536, 576), (100, 200)])
def test_packed_swiglu_is_no_further_from_float64_than_plain(
    hopper: HopperKernels, inner: int, width: int, share: float
) -> None:
    gate_up = with_exceptions((torch.randn(2 * inner, width, device="cuda") * 0.02).bfloat16().half(), share)
    hidden, norm = torch.randn(1, width, device="cuda").half(), torch.rand(width, device="cuda").half() + 0.5
    expected = ReferenceKernels().one_row_swiglu(hidden.double(), norm.double(), EPS, gate_up.double())
    plain, ours = (hopper.one_row_swiglu(hidden, norm, EPS, of) for of in (gate_up, pack(gate_up, merged=True)))
    assert error(ours, expected) <= 1.02 * error(plain, expected) < 2e-3


@pytest.mark.gpu
def test_packed_rows_captured_answer_the_same_in_every_replay(hopper: HopperKernels) -> None:
    """Kernels that overlap, on buffers that are used again."""
    width, inner = 4096, 11008
    weights = [
        (torch.randn(shape, device="cuda") * 0.02).bfloat16().half() for shape in ((2 * inner, width), (width, inner))
    ]
    gate_up, down = pack(weights[0], merged=True), pack(weights[1])
    hidden, norm = torch.empty(1, width, device="cuda").half(), torch.rand(width, device="cuda").half()

    def run() -> None:
        hidden.fill_(0.5)
        for _ in range(8):
            hopper.one_row_add(hidden, hopper.one_row_swiglu(hidden, norm, EPS, gate_up), down)

    run()
    torch.cuda.synchronize()
    eager = hidden.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for _ in range(50):
        hidden.fill_(torch.nan)
        graph.replay()
        assert torch.equal(hidden, eager)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("share", [0.0, 1e-3])
@pytest.mark.parametrize("num_tokens", [1, 10, 17, 50, 100, 150, 176])
@pytest.mark.parametrize("shape", [(12288, 4096), (4096, 11008), (576, 1536), (6720, 2368), (64, 200)], ids=str)
def test_packed_gemm_gives_the_plain_ones_sums_bit_for_bit(
    shape: tuple[int, int], num_tokens: int, share: float
) -> None:
    weight = with_exceptions((torch.randn(shape, device="cuda") * 0.02).bfloat16().half(), share)
    rows = torch.randn(num_tokens, shape[1], device="cuda").half()
    for epilogue, warpgroups, merged in (
        ("store_partial", 2, False),
        ("store_partial", 1, False),
        ("store_swiglu", 3, True),
    ):
        splits = 2 if epilogue == "store_partial" else 1
        width = shape[0] // 2 if merged else shape[0]
        outs = [torch.full((splits, num_tokens, width), torch.nan, device="cuda").half() for _ in range(2)]
        packed = pack(weight, merged=merged)
        tiles = (tile_for(num_tokens, warpgroups), tile_for(num_tokens, warpgroups, packed=True, exceptions=share > 0))
        for out, tile, matrix in zip(outs, tiles, (weight, packed), strict=True):
            Gemm(epilogue, tile, splits)(rows, matrix, out, overlap=True)
        assert outs[0].isfinite().all() and torch.equal(*outs)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [5, 64, 120, 300])
def test_kernels_on_packed_weights_are_as_near_to_float64(hopper: HopperKernels, num_tokens: int) -> None:
    """Whichever form they read at this length."""
    weight = (torch.randn(4096, 1024, device="cuda") * 0.02).bfloat16().half()
    matrix = replace(pack(weight), plain=weight)
    rows, hidden = (
        torch.randn(num_tokens, 1024, device="cuda").half(),
        torch.randn(num_tokens, 4096, device="cuda").half(),
    )
    expected = hidden.double() + rows.double() @ weight.double().T
    sums = [hidden.clone(), hidden.clone()]
    for each, form in zip(sums, (weight, matrix), strict=True):
        hopper.linear_add_norm(each, rows, form, torch.ones(4096, device="cuda").half(), EPS)
    plain, ours = (error(each, expected) for each in sums)
    assert ours <= 1.02 * plain < 1e-3
    merged = replace(pack(weight, merged=True), plain=weight)
    plain, ours = (
        error(hopper.linear_swiglu(rows, form), ReferenceKernels().linear_swiglu(rows.double(), weight.double()))
        for form in (weight, merged)
    )
    assert ours <= 1.02 * plain < 2e-3
