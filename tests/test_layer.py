"""What lies between two attentions, in one launch on Hopper: compiled here, and on a GPU equal to plain PyTorch."""

from dataclasses import dataclass, replace
from random import randint

import pytest
import torch
from torch import Tensor

from hybridgraph.forward.kernels import AttentionInput, HeadNorms, Heads, LayerWeights, Projection, Slots
from hybridgraph.forward.kernels.hopper import MOST_PIECES, MOST_TOKENS, HopperKernels, covers_layer, shape_for
from hybridgraph.forward.kernels.layer import RING_BYTES, Shape, compile_layer
from hybridgraph.forward.kernels.reference import ReferenceKernels

H200_PAIRS = 66
LENGTHS = (1, 16, 17, 100, 128, 137, 160, 200, 201, 333, 400)
both_types = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_every_shape_compiles(num_tokens: int) -> None:
    shape = shape_for(num_tokens, 4096, torch.float16, H200_PAIRS)
    assert shape is not None
    assert compile_layer(shape).startswith(b"\x7fELF")


def test_bfloat16_compiles() -> None:
    assert compile_layer(Shape(104, 896, 4, True, torch.bfloat16)).startswith(b"\x7fELF")


def test_a_shape_that_does_not_fit_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"layer\.cu.*registers"):
        compile_layer(Shape(256, 4096, 6, True, torch.float16))


@pytest.mark.parametrize("width", [576, 896, 2048, 4096, 8192])
def test_shapes_cover_the_prompt_and_fit_a_block(width: int) -> None:
    for num_tokens in range(1, MOST_TOKENS * MOST_PIECES + 1):
        shape = shape_for(num_tokens, width, torch.float16, H200_PAIRS)
        assert shape is not None
        assert shape.tokens % 8 == 0 and shape.tokens <= MOST_TOKENS
        assert shape.pieces(num_tokens) <= MOST_PIECES
        assert shape.stages >= 4 and shape.stages * shape.stage_bytes <= RING_BYTES
    assert shape_for(MOST_TOKENS * MOST_PIECES + 1, width, torch.float16, H200_PAIRS) is None


@dataclass(frozen=True)
class Model:
    """One layer with random weights, in half precision and, exactly, in float32."""

    heads: Heads
    layer: LayerWeights
    wide: LayerWeights

    @classmethod
    def random(cls, queries: int, keys: int, dim: int, inner: int, dtype: torch.dtype) -> "Model":
        def matrix(rows: int, columns: int) -> Tensor:
            return (torch.randn(rows, columns, device="cuda") / columns**0.5).to(dtype)

        def vector(size: int) -> Tensor:
            return (1 + torch.randn(size, device="cuda") / 4).to(dtype)

        width, qkv_width = queries * dim, (queries + 2 * keys) * dim
        bias = vector(qkv_width) if randint(0, 1) else None
        layer = LayerWeights(
            input_norm=vector(width),
            qkv=Projection(weight=matrix(qkv_width, width), bias=bias, norms=HeadNorms(), num_queries=queries),
            out=matrix(width, width),
            mlp_norm=vector(width),
            gate_up=matrix(2 * inner, width),
            down=matrix(width, inner),
        )
        wide_qkv = replace(layer.qkv, weight=layer.qkv.weight.float(), bias=None if bias is None else bias.float())
        wide = LayerWeights(
            input_norm=layer.input_norm.float(),
            qkv=wide_qkv,
            out=layer.out.float(),
            mlp_norm=layer.mlp_norm.float(),
            gate_up=layer.gate_up.float(),
            down=layer.down.float(),
        )
        return cls(Heads(queries=queries, keys=keys, dim=dim, scale=dim**-0.5, eps=1e-5), layer, wide)

    def inputs(self, slots: Slots, start: Tensor, *, wide: bool, keys_alone: bool = False) -> AttentionInput:
        layer, width = self.wide if wide else self.layer, self.heads.query_width
        projection = layer.qkv.without_queries(width) if keys_alone else layer.qkv
        norm, heads = layer.input_norm, self.heads
        return AttentionInput(norm=norm, eps=1e-5, projection=projection, heads=heads, slots=slots, start=start)


def random_slots(heads: Heads, positions: int, dtype: torch.dtype) -> Slots:
    """Poisoned: what is not written is found."""
    angles = torch.rand(positions, heads.dim // 2, device="cuda") * 6
    cache = torch.full((2, heads.keys, positions, heads.dim), torch.nan, dtype=dtype, device="cuda")
    return Slots(*cache, angles.cos(), angles.sin())


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= (2e-3 if dtype == torch.float16 else 1.6e-2), f"relative error {float(error):.2e}"


# (query heads, key heads, head size, inner width): Llama-2-7B's; grouped heads; small ones; large ones, and widths
# that are no multiple of what a block or a stage takes.
SHAPES = [(32, 32, 128, 11008), (16, 4, 128, 4096), (9, 3, 64, 1536), (5, 1, 256, 1504)]


@pytest.mark.gpu
@both_types
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_tokens", [*LENGTHS, 401, 513])
def test_one_launch_does_what_plain_pytorch_does(
    num_tokens: int, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """From any position, with biases or without; what lies around the prompt in the cache stays as it was."""
    model, keys_alone = Model.random(*shape, dtype), bool(randint(0, 1))
    heads, width = model.heads, model.heads.query_width
    before = randint(0, 40)
    start, end = torch.tensor([before], device="cuda"), before + num_tokens
    slots = random_slots(heads, end + 9, dtype)
    plain = Slots(torch.zeros_like(slots.keys).float(), torch.zeros_like(slots.values).float(), slots.cos, slots.sin)
    hidden, attended = (torch.randn(num_tokens, width, device="cuda").to(dtype) for _ in range(2))
    wide_hidden = hidden.float()
    kernels, to = HopperKernels(torch.device("cuda", 0)), model.inputs(slots, start, wide=False, keys_alone=keys_alone)
    queries = kernels.between_attentions(hidden, attended, model.layer, to)
    expected = ReferenceKernels().between_attentions(
        wide_hidden, attended.float(), model.wide, model.inputs(plain, start, wide=True, keys_alone=keys_alone)
    )
    assert_close(hidden, wide_hidden, dtype)
    if not keys_alone:
        assert_close(queries[:, :width], expected[:, :width], dtype)
    for stored, wanted in ((slots.keys, plain.keys), (slots.values, plain.values)):
        assert_close(stored[:, before:end], wanted[:, before:end], dtype)
        assert stored[:, :before].isnan().all() and stored[:, end:].isnan().all()


@pytest.mark.gpu
def test_it_is_one_launch_where_it_should_be() -> None:
    model = Model.random(*SHAPES[0], torch.float16)
    assert all(covers_layer(model.layer, pieces, H200_PAIRS) for pieces in range(1, MOST_PIECES + 1))


@pytest.mark.gpu
@pytest.mark.parametrize("most", [30, 200, 400])
def test_every_replay_of_overlapping_launches_answers_the_same(most: int) -> None:
    """Layers one behind the other, on buffers that are used again; launches alone and in a graph."""
    num_tokens, dtype = randint(1, most), torch.float16
    model, kernels = Model.random(*SHAPES[0], dtype), HopperKernels(torch.device("cuda", 0))
    slots, start = random_slots(model.heads, num_tokens, dtype), torch.zeros(1, dtype=torch.long, device="cuda")
    to = model.inputs(slots, start, wide=False)
    normed = torch.randn(num_tokens, model.heads.query_width, device="cuda").to(dtype)
    hidden = torch.zeros_like(normed)

    def run() -> Tensor:
        hidden.zero_()
        queries = kernels.linear_rotate(normed, to)
        for _ in range(6):
            attended = kernels.attend(queries, start, model.heads, slots)
            queries = kernels.between_attentions(hidden, attended, model.layer, to)
        return queries

    eager = run().clone()
    assert not eager.isnan().any()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(20):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, eager)
