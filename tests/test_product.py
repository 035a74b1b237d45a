"""The own products of Hopper: compiled here, and on a GPU equal to the same products in float32."""

from collections.abc import Callable
from random import randint

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgraph.forward.kernels import HeadNorms, Heads, Slots
from hybridgraph.forward.kernels.hopper import MOST_TOKENS, HopperKernels, tile_for
from hybridgraph.forward.kernels.product import RING_BYTES, UNIT, Tile, compile_product
from hybridgraph.forward.kernels.reference import ReferenceKernels

H200 = 132  # multiprocessors
LENGTHS = (1, 16, 17, 100, 128, 137, 160, 200)
LLAMA_2_7B = {"Rotate": 12288, "Add": 4096, "Swiglu": 22016}  # rows of its matrices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("epilogue", LLAMA_2_7B)
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_every_shape_compiles(num_tokens: int, epilogue: str, dtype: torch.dtype) -> None:
    tile = tile_for(LLAMA_2_7B[epilogue], num_tokens, H200)
    assert tile is not None
    assert compile_product(epilogue, tile, dtype).startswith(b"\x7fELF")


def test_a_shape_that_does_not_fit_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"product\.cu.*registers"):
        compile_product("Swiglu", Tile(warpgroups=3, tokens=256), torch.float16)


@pytest.mark.parametrize("num_rows", [*LLAMA_2_7B.values(), 64, 576, 6144, 8192])
def test_tiles_cover_the_product_in_one_wave_and_fit_a_block(num_rows: int) -> None:
    for num_tokens in range(1, 1025):
        if (tile := tile_for(num_rows, num_tokens, H200)) is None:
            continue
        units = -(-num_rows // UNIT)
        blocks = -(-units // (tile.warpgroups * tile.sharing)) * tile.sharing
        pieces = -(-num_tokens // tile.tokens)
        assert blocks * tile.splits * pieces <= H200
        assert tile.tokens <= MOST_TOKENS[tile.warpgroups] and tile.tokens % 8 == 0
        assert tile.sharing * tile.splits <= 8, "larger clusters are not portable"
        assert tile.stages >= 4 and tile.stages * tile.stage_bytes <= RING_BYTES
        inbox_bytes = tile.splits * -(-tile.tokens // 8 // tile.splits) * tile.warpgroups * 128 * 16
        assert tile.splits == 1 or inbox_bytes <= tile.stages * tile.stage_bytes


def rows(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= (1e-3 if dtype == torch.float16 else 8e-3), f"relative error {float(error):.2e}"


# Llama-2-7B's; then a last unit that is not a whole tile, and a reduction that is no multiple of a stage.
WIDTHS = [(4096, 11008), (576, 1536), (840 * 8, 64 * 37)]
both_types = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
every_length = pytest.mark.parametrize("num_tokens", [*LENGTHS, 201, 256, 257, 300, 333, 400, 512, 513])


@pytest.mark.gpu
@both_types
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@every_length
def test_products_equal_float32(num_tokens: int, widths: tuple[int, int], dtype: torch.dtype) -> None:
    hidden_width, inner = widths
    kernels = HopperKernels()
    normed = rows(num_tokens, hidden_width, dtype=dtype)
    gate_up = rows(2 * inner, hidden_width, dtype=dtype) / hidden_width**0.5
    gate, up = (normed.float() @ gate_up.float().T).chunk(2, dim=-1)
    gated = kernels.linear_swiglu(normed, gate_up)
    assert_close(gated, F.silu(gate) * up, dtype)

    hidden, down = rows(num_tokens, hidden_width, dtype=dtype), rows(hidden_width, inner, dtype=dtype) / inner**0.5
    expected = hidden.float() + gated.float() @ down.float().T
    norm = rows(hidden_width, dtype=dtype)
    normed = kernels.linear_add_norm(hidden, gated, down, norm, 1e-5)
    assert_close(hidden, expected, dtype)
    assert_close(normed, ReferenceKernels().norm(expected, norm.float(), 1e-5), dtype)


# (query heads, key heads, head size): Llama-2-7B's; grouped; small heads; large ones.
HEADS = [(32, 32, 128), (32, 8, 128), (9, 3, 64), (4, 2, 256)]


@pytest.mark.gpu
@both_types
@pytest.mark.parametrize("shape", HEADS, ids=str)
@pytest.mark.parametrize("keys_alone", [False, True], ids=["", "keys_alone"])
@every_length
def test_projections_are_rotated_and_stored(
    num_tokens: int, keys_alone: bool, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """With biases and without, from any position; what lies around the prompt in the cache stays as it was."""
    queries, keys, dim = shape
    heads = Heads(queries=queries, keys=keys, dim=dim, scale=dim**-0.5, eps=1e-5)
    num_queries = 0 if keys_alone else queries
    width, hidden = (num_queries + 2 * keys) * dim, queries * dim
    normed, weight = rows(num_tokens, hidden, dtype=dtype), rows(width, hidden, dtype=dtype) / hidden**0.5
    bias = rows(width, dtype=dtype) if randint(0, 1) else None
    before = randint(0, 40)
    start, end = torch.tensor([before], device="cuda"), before + num_tokens
    angles = torch.rand(end + 9, dim // 2, device="cuda") * 6
    cache = torch.full((2, keys, end + 9, dim), torch.nan, dtype=dtype, device="cuda")
    slots, plain = (Slots(*both, angles.cos(), angles.sin()) for both in (cache, torch.zeros_like(cache).float()))
    rotated = HopperKernels().linear_rotate(normed, weight, bias, num_queries, start, heads, HeadNorms(), slots)
    wide_bias = None if bias is None else bias.float()
    expected = ReferenceKernels().linear_rotate(
        normed.float(), weight.float(), wide_bias, num_queries, start, heads, HeadNorms(), plain
    )
    if num_queries:
        assert_close(rotated[:, : queries * dim], expected[:, : queries * dim], dtype)
    for stored, wanted in ((slots.keys, plain.keys), (slots.values, plain.values)):
        assert_close(stored[:, before:end], wanted[:, before:end], dtype)
        assert stored[:, :before].isnan().all() and stored[:, end:].isnan().all()


def all_of_a_layer(kernels: HopperKernels, num_tokens: int) -> Callable[[], Tensor]:
    """Kernels that overlap, on buffers that are used again."""
    dtype = torch.float16
    heads = Heads(queries=32, keys=32, dim=128, scale=128**-0.5, eps=1e-5)
    qkv, out = rows(12288, 4096, dtype=dtype) / 64, rows(4096, 4096, dtype=dtype) / 64
    gate_up, down = rows(22016, 4096, dtype=dtype) / 64, rows(4096, 11008, dtype=dtype) / 105
    angles = torch.rand(num_tokens, 64, device="cuda") * 6
    cache = torch.zeros(2, 32, num_tokens, 128, dtype=dtype, device="cuda")
    slots, start = Slots(*cache, angles.cos(), angles.sin()), torch.zeros(1, dtype=torch.long, device="cuda")
    normed, norm = rows(num_tokens, 4096, dtype=dtype), rows(4096, dtype=dtype)
    hidden = torch.zeros_like(normed)

    def run() -> Tensor:
        hidden.zero_()
        x = normed
        for _ in range(5):
            queries = kernels.linear_rotate(x, qkv, None, 32, start, heads, HeadNorms(), slots)
            x = kernels.linear_add_norm(hidden, kernels.attend(queries, start, heads, slots), out, norm, 1e-5)
            x = kernels.linear_add_norm(hidden, kernels.linear_swiglu(x, gate_up), down, norm, 1e-5)
        return x

    return run


@pytest.mark.gpu
@pytest.mark.parametrize("most", [30, 200, 500])
def test_captured_products_answer_the_same_in_every_replay(most: int) -> None:
    run = all_of_a_layer(HopperKernels(), randint(1, most))
    eager = run().clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(20):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, eager)
