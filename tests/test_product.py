"""The own products of Hopper: compiled here, and on a GPU equal to the same products in float32."""

from pathlib import Path
from random import randint

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgraph.forward.kernels import product
from hybridgraph.forward.kernels.hopper import MOST_TOKENS_SPLIT, MOST_TOKENS_SWIGLU, HopperKernels, tile_for
from hybridgraph.forward.kernels.product import RING_BYTES, Epilogue, Product, Tile, compile_product

LENGTHS = (1, 16, 17, 100, 128, 137, 160, 200, 201, 233)
TOO_LARGE = Tile(warpgroups=5, tokens=200, cluster=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("epilogue", ["store_swiglu", "store_partial"])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_every_shape_compiles(num_tokens: int, epilogue: Epilogue, dtype: torch.dtype) -> None:
    tile = tile_for(num_tokens, warpgroups=3 if epilogue == "store_swiglu" else 2)
    assert tile.stages >= 4 and tile.stages * tile.stage_bytes <= RING_BYTES
    assert compile_product(epilogue, tile, dtype).startswith(b"\x7fELF")


def test_a_shape_that_does_not_fit_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"product\.cu.*registers"):
        compile_product("store_swiglu", TOO_LARGE, torch.float16)


def test_what_is_compiled_together_is_found_when_it_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    wanted = {Product("store_partial", tile_for(num_tokens, 2), splits) for num_tokens in (1, 40) for splits in (2, 4)}
    product.compile_together(wanted, torch.float16)
    assert len(list(tmp_path.rglob("product.cubin"))) == 2, "one for each tile, however it is split"
    monkeypatch.setattr(product, "compile_product", None)
    product.compile_together(wanted, torch.float16)


def test_a_product_that_does_not_compile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="registers"):
        product.compile_together([Product("store_swiglu", TOO_LARGE)], torch.float16)


def rows(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


# Llama-2-7B's; then a last unit that is not a whole tile, and a reduction that is no multiple of a stage.
WIDTHS = [(4096, 11008), (576, 1536), (840 * 8, 64 * 37)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("num_tokens", [*LENGTHS, 161, 300])
def test_products_equal_float32(num_tokens: int, widths: tuple[int, int], dtype: torch.dtype) -> None:
    hidden_width, inner = widths
    kernels, limit = HopperKernels(), 1e-3 if dtype == torch.float16 else 8e-3
    normed = rows(num_tokens, hidden_width, dtype=dtype)
    gate_up = rows(2 * inner, hidden_width, dtype=dtype) / hidden_width**0.5
    gate, up = (normed.float() @ gate_up.float().T).chunk(2, dim=-1)
    gated = kernels.linear_swiglu(normed, gate_up)
    assert error(gated, F.silu(gate) * up) <= limit

    hidden, down = rows(num_tokens, hidden_width, dtype=dtype), rows(hidden_width, inner, dtype=dtype) / inner**0.5
    expected = hidden.float() + gated.float() @ down.float().T
    norm = rows(hidden_width, dtype=dtype)
    normed = kernels.linear_add_norm(hidden, gated, down, norm, 1e-5)
    assert error(hidden, expected) <= limit
    assert (
        error(normed, expected * torch.rsqrt(expected.square().mean(-1, keepdim=True) + 1e-5) * norm.float()) <= limit
    )


@pytest.mark.gpu
def test_everything_a_prompt_needs_is_compiled_before_it_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    product._kernel.cache_clear()
    kernels, dtype = HopperKernels(), torch.float16
    gate_up, down = rows(22016, 4096, dtype=dtype), rows(4096, 11008, dtype=dtype)
    lengths = [randint(1, 200) for _ in range(3)]
    kernels.prepare(lengths, gate_up, (down,))
    monkeypatch.setattr(product, "compile_product", None)
    for num_tokens in lengths:
        normed, hidden = rows(num_tokens, 4096, dtype=dtype), rows(num_tokens, 4096, dtype=dtype)
        kernels.linear_add_norm(hidden, kernels.linear_swiglu(normed, gate_up), down, normed[0], 1e-5)


@pytest.mark.gpu
def test_a_captured_product_answers_the_same_in_every_replay() -> None:
    num_tokens = randint(1, min(MOST_TOKENS_SPLIT, MOST_TOKENS_SWIGLU))
    kernels, normed = HopperKernels(), rows(num_tokens, 4096, dtype=torch.float16)
    gate_up, down = rows(22016, 4096, dtype=torch.float16) / 64, rows(4096, 11008, dtype=torch.float16) / 105
    hidden, norm = torch.zeros_like(normed), rows(4096, dtype=torch.float16)

    def run() -> Tensor:
        hidden.zero_()
        for _ in range(5):  # kernels that overlap, on buffers that are used again
            out = kernels.linear_add_norm(hidden, kernels.linear_swiglu(normed, gate_up), down, norm, 1e-5)
        return out

    eager = run().clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(20):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, eager)
