"""The Triton kernels against plain PyTorch in float32: compiled on a GPU, elsewhere in Triton's interpreter."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import randint
from typing import Any

import pytest
import torch
from architectures import tiny_model
from torch import Tensor
from torch.nn import functional as F

from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.kernels.protocol import HeadNorms, Heads, Slots
from hybridgraph.kernels.reference import ReferenceKernels

pytest.importorskip("triton", reason="Triton is made for Linux only")

from hybridgraph.engine.ops import native
from hybridgraph.kernels import sampling
from hybridgraph.kernels.heuristics import Blocks, GemvBlock, next_power_of_2
from hybridgraph.kernels.portable import TritonKernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
POSITIONS = 100
EPS = 1e-5
# In the interpreter programs run one after the other: few of them.
BLOCKS = Blocks() if DEVICE.type == "cuda" else Blocks(attention_programs=16)
LENGTHS = [1, 16, 17, 70]  # around the blocks of attention: 16 queries, then 64

# (query heads, key heads, head size, norms of heads): one of each kind that the kernels have code for.
HEADS = [(8, 8, 16, False), (4, 2, 32, False), (6, 3, 12, True), (8, 1, 16, True)]


@dataclass(frozen=True)
class Attention:
    """One layer's attention with random slots; what lies behind ``length`` is poisoned for Triton."""

    heads: Heads
    norms: HeadNorms
    triton: Slots
    plain: Slots
    length: int


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE).half()


def wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Within float16's own rounding, measured as a whole: a lost row or column is far outside."""
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= 2e-3, f"relative error {float(error):.2e}"


def same(name: str, *values: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """What kernel ``name`` answers in Triton, and in plain PyTorch from the same numbers in float32."""
    plain = getattr(ReferenceKernels(), name)(*map(wide, values), **{key: wide(value) for key, value in named.items()})
    return getattr(TritonKernels(BLOCKS), name)(*values, **named), plain


@pytest.fixture(params=HEADS, ids=lambda heads: "-".join(map(str, heads)))
def attention(request: pytest.FixtureRequest) -> Attention:
    queries, keys, dim, has_norms = request.param
    heads = Heads(num_heads=queries, num_kv_heads=keys, head_dim=dim, scale=dim**-0.5, eps=EPS)
    weights = [1 + rows(dim) / 4 for _ in range(2)]
    angles = torch.rand(POSITIONS, dim // 2, device=DEVICE) * 6
    length = randint(1, POSITIONS - 1)
    keys_values = [rows(keys, POSITIONS, dim) for _ in range(2)]
    poisoned = [slots.clone() for slots in keys_values]
    for slots in poisoned:
        slots[:, length:] = torch.nan
    turn = (angles.cos(), angles.sin())
    return Attention(
        heads,
        HeadNorms(*weights) if has_norms else HeadNorms(),
        Slots(*poisoned, *turn),
        Slots(*map(wide, keys_values), *turn),
        length,
    )


def plain_norms(norms: HeadNorms) -> HeadNorms:
    return HeadNorms(wide(norms.query), wide(norms.key))


@pytest.mark.parametrize("width", [48, 64, 1000, 2048])
def test_norms(width: int) -> None:
    hidden, weight = rows(randint(1, 20), width) * 3, rows(width)
    assert_close(*same("norm", hidden, weight, EPS))
    ids, start = torch.randint(50, (30,), device=DEVICE), torch.tensor([randint(0, 10)], device=DEVICE)
    (copied, normed), (plain_copied, plain_normed) = same(
        "embed_norm", ids, start, randint(1, 20), rows(50, width), weight, EPS
    )
    assert torch.equal(copied.float(), plain_copied)
    assert_close(normed, plain_normed)


@pytest.mark.parametrize("width", [40, 1024, 1100])
def test_swiglu(width: int) -> None:
    gate_up = rows(randint(1, 20), 2 * width) * 3
    gate, up = gate_up.float().chunk(2, dim=-1)
    assert_close(TritonKernels(BLOCKS).swiglu(gate_up), F.silu(gate) * up)


@pytest.mark.parametrize("splits", [1, 3])
def test_partial_sums_are_added_and_normed(splits: int) -> None:
    hidden, weight = rows(randint(1, 20), 1000), rows(1000)
    partial = rows(splits, *hidden.shape)
    expected = hidden.float() + partial.float().sum(0)
    normed = TritonKernels(BLOCKS).add_norm(hidden, partial, weight, EPS)
    assert_close(hidden, expected)
    assert_close(normed, ReferenceKernels().norm(expected, weight.float(), EPS))


@pytest.mark.parametrize(("num_rows", "width"), [(1, 48), (30, 1000), (30, 2100), (70, 8200)])
def test_one_row_products(num_rows: int, width: int) -> None:
    row, norm, weight = rows(1, width), rows(width), rows(num_rows, width) / width**0.5
    assert_close(*same("one_row_linear", row, norm, EPS, weight, None))
    assert_close(*same("one_row_linear", row, norm, EPS, weight, rows(num_rows)))
    hidden = rows(1, num_rows)
    expected = hidden.float() + row.float() @ weight.float().T
    TritonKernels(BLOCKS).one_row_add(hidden, row, weight)
    assert_close(hidden, expected)


@pytest.mark.parametrize(("num_rows", "width"), [(7, 48), (160, 1000), (33, 2048)])
def test_one_row_swiglu(num_rows: int, width: int) -> None:
    gate_up = rows(2 * num_rows, width) / width**0.5 * 2
    assert_close(*same("one_row_swiglu", rows(1, width), rows(width), EPS, gate_up))


def stored_plainly(partial: Tensor, start: Tensor, attention: Attention) -> Tensor:
    """Projections whose ``partial`` sums are given, rotated and stored in float32; returns the queries."""
    norms = plain_norms(attention.norms)
    return ReferenceKernels().rotate_store(partial.float(), start, attention.heads, norms, attention.plain)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "piece"])
@pytest.mark.parametrize("splits", [1, 3])
def test_prompt_attention(attention: Attention, length: int, in_pieces: bool, splits: int) -> None:
    """A whole prompt, or a piece of one behind the slots that the pieces before have filled."""
    heads, norms = attention.heads, attention.norms
    before = min(attention.length, POSITIONS - length) if in_pieces else 0
    start, end = torch.tensor([before], device=DEVICE), before + length
    partial = rows(splits, length, (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim)
    for slots in (attention.triton.keys, attention.triton.values):
        slots[:, before:] = torch.nan
    plain = stored_plainly(partial, start, attention)
    queries = TritonKernels(BLOCKS).rotate_store(partial, start, heads, norms, attention.triton)
    assert_close(queries[:, : heads.query_width], plain[:, : heads.query_width])
    assert_close(attention.triton.keys[:, :end], attention.plain.keys[:, :end])
    assert_close(attention.triton.values[:, :end], attention.plain.values[:, :end])
    assert attention.triton.keys[:, end:].isnan().all(), "nothing is written behind the prompt"
    assert_close(
        TritonKernels(BLOCKS).attend(queries, start, heads, attention.triton),
        ReferenceKernels().attend(plain, start, heads, attention.plain),
    )


def test_keys_and_values_alone_are_stored(attention: Attention) -> None:
    heads, norms = attention.heads, attention.norms
    partial = rows(2, attention.length, 2 * heads.num_kv_heads * heads.head_dim)
    start = torch.zeros(1, dtype=torch.long, device=DEVICE)
    stored_plainly(partial, start, attention)
    TritonKernels(BLOCKS).rotate_store(partial, start, heads, norms, attention.triton)
    for stored, plain in (
        (attention.triton.keys, attention.plain.keys),
        (attention.triton.values, attention.plain.values),
    ):
        assert_close(stored[:, : attention.length], plain[:, : attention.length])


@pytest.mark.parametrize("store", [True, False])
def test_one_row_attention(attention: Attention, store: bool) -> None:
    heads, norms = attention.heads, attention.norms
    row = rows(1, (heads.num_heads + (2 * heads.num_kv_heads if store else 0)) * heads.head_dim)
    position = torch.tensor([attention.length if store else attention.length - 1], device=DEVICE)
    actual = TritonKernels(BLOCKS).one_row_attend(row, position, heads, norms, attention.triton, store=store)
    expected = ReferenceKernels().one_row_attend(
        row.float(), position, heads, plain_norms(norms), attention.plain, store=store
    )
    assert_close(actual, expected)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2", "qwen3"])  # grouped heads, biases, head norms
@torch.inference_mode()
def test_the_whole_forward(name: str, tmp_path: Path) -> None:
    """Prefill in two pieces, padded, and then one token: as by plain kernels on the same half-precision weights."""
    model = tiny_model(name, tmp_path, device=str(DEVICE), dtype="float16").module
    first, length = randint(1, 20), randint(1, 16)
    ids = torch.randint(500, (first + length + 5,), device=DEVICE)
    zero, start, last = (torch.tensor([at], device=DEVICE) for at in (0, first, first + length - 1))
    answers = []
    for kernels in (TritonKernels(BLOCKS), ReferenceKernels()):
        forward = FusedForward(model, kernels)
        cache, logits = forward.allocate_cache(64), torch.empty(500, dtype=torch.float16, device=DEVICE)
        forward.prefill(ids, first, zero, start - 1, cache, logits)
        forward.prefill(ids, length + 5, start, last, cache, logits)
        answers.append([logits.clone()])
        forward.decode(ids[-1:], last + 1, cache, logits)
        answers[-1].append(logits)
    for actual, expected in zip(*answers, strict=True):
        error = (actual.double() - expected.double()).norm() / expected.double().norm()
        assert error <= 1e-2, f"relative error {float(error):.2e}"


@pytest.fixture
def few_logits_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BLOCK", 64)


def chosen(launch: Callable[..., None], logits: Tensor, *draw: float) -> int:
    """The id that a sampling kernel writes, to the device and to the host alike, and nowhere else."""
    token = torch.full((1,), -1, device=DEVICE)
    told = torch.full((20,), -1, pin_memory=DEVICE.type == "cuda")
    step = randint(0, 19)
    launch(logits, *draw, token, told, step)
    choice = int(token)  # which waits for the kernel
    assert told.tolist() == [choice if i == step else -1 for i in range(20)]
    return choice


@pytest.mark.parametrize("vocab", [5, 64, 100, 500])
@pytest.mark.usefixtures("few_logits_a_step")
def test_ids_are_chosen_as_natively_chunk_by_chunk(vocab: int) -> None:
    logits = rows(vocab) * 3
    cumulative = torch.cumsum(torch.softmax(logits.float() / 0.7, -1), -1)
    for uniform in (0.0, *torch.rand(5).tolist(), 1 - 2**-24):
        a = chosen(sampling.launch_sample, logits, 0.7, uniform)
        b = int(native.sample(logits, torch.tensor([0.7, uniform], device=DEVICE)))
        # Sums in another order may round a draw that falls on an id's very edge to its neighbour.
        assert a == b or abs(float(cumulative[min(a, b)]) - uniform) < 1e-5
    logits[3::50] = logits.max()  # the first of them counts
    assert chosen(sampling.launch_greedy, logits) == int(native.greedy(logits))


@pytest.mark.usefixtures("few_logits_a_step")
def test_impossible_ids_are_not_chosen() -> None:
    logits = torch.full((200,), -torch.inf, device=DEVICE).half()
    logits[130] = 1.0
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert chosen(sampling.launch_sample, logits, 0.7, uniform) == 130


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy
def test_logits_without_meaning_still_choose_an_id(value: float) -> None:
    """A decode step reads that row of the embedding: outside of it the process would end."""
    logits = torch.full((200,), value, device=DEVICE).half()
    assert 0 <= chosen(sampling.launch_sample, logits, 0.7, 0.5) < 200
    assert 0 <= chosen(sampling.launch_greedy, logits) < 200


def test_gemv_blocks_are_those_that_were_measured_best_for_each_matrix_of_llama_2_7b() -> None:
    gemv = Blocks().gemv
    assert gemv(num_rows=12288, width=4096, swiglu=False) == GemvBlock(4, 2048, 8)  # query, key and value
    assert gemv(num_rows=4096, width=4096, swiglu=False) == GemvBlock(2, 2048, 4)  # attention's output
    assert gemv(num_rows=11008, width=4096, swiglu=True) == GemvBlock(1, 1024, 4)  # gate and up
    assert gemv(num_rows=4096, width=11008, swiglu=False) == GemvBlock(4, 1024, 4)  # down
    assert gemv(num_rows=32000, width=4096, swiglu=False) == GemvBlock(4, 2048, 8)  # the output projection
    assert gemv(num_rows=30, width=48, swiglu=False) == GemvBlock(2, 64, 4), "no step is longer than a row"


def test_next_power_of_2_is_tritons() -> None:
    import triton

    assert all(next_power_of_2(n) == triton.next_power_of_2(n) for n in range(5000))


def test_every_kernel_compiles_for_hopper_with_overlapping_launches(tmp_path: Path) -> None:
    """Those launches are what the interpreter cannot run."""
    paths = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = str(Path(__file__).with_name("compile_for_hopper.py"))
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    kernels = Path(sampling.__file__).parent.glob("*.py")
    written = {name for path in kernels for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)}
    assert set(run.stdout.split()) == written
