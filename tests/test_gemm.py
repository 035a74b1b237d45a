"""The custom GEMMs for Hopper: compiled here, and on a GPU equal to the same products in float32."""

from pathlib import Path
from random import randint

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgraph.kernels.heuristics import LIMITS, limits_on
from hybridgraph.kernels.hopper import kernels, nvrtc
from hybridgraph.kernels.hopper.gemm import RING_BYTES, Epilogue, Tile, program_of, tile_for
from hybridgraph.kernels.hopper.kernels import HopperKernels, split_k_gemm
from hybridgraph.kernels.hopper.nvrtc import Program
from hybridgraph.kernels.protocol import HeadNorms, Heads, Slots
from hybridgraph.kernels.reference import ReferenceKernels

LENGTHS = (1, 16, 17, 100, 128, 137, 160, 200, 201, 240, 256)
SHAPES: tuple[tuple[Epilogue, int], ...] = (("store_swiglu", 3), *(("store_partial", n) for n in (1, 2, 3)))
H100 = LIMITS["H100"]
EDGES = (H100.swiglu, H100.swiglu + 1, H100.added, H100.added + 1)
TOO_LARGE = Tile(warpgroups=5, tokens=200, cluster=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "epilogue", "warpgroups", "stages"),
    [
        *((num_tokens, *shape, 4) for num_tokens in LENGTHS for shape in SHAPES),
        (300, "store_partial", 2, 4),
        (H100.swiglu, "store_swiglu", 3, 3),  # as many as fit beside so many tokens
        (H100.added, "store_partial", 2, 3),
    ],
)
def test_program_of_every_shape_compiles(
    num_tokens: int, epilogue: Epilogue, warpgroups: int, stages: int, dtype: torch.dtype
) -> None:
    tile = tile_for(num_tokens, warpgroups)
    assert tile.stages >= stages and tile.stages * tile.stage_bytes <= RING_BYTES
    assert nvrtc.compile_program(program_of(epilogue, tile, dtype)).startswith(b"\x7fELF")
    assert bytes([32])[0] == 32, "the compiler's empty log was written into a bytes object that Python shares"


@pytest.fixture
def open_programs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The handles of NVRTC's programs that have been made and not yet destroyed."""
    from cuda.bindings import nvrtc as bindings

    handles: list[int] = []
    create, destroy = bindings.nvrtcCreateProgram, bindings.nvrtcDestroyProgram

    def created(*arguments: object) -> tuple[object, ...]:
        answer = create(*arguments)
        handles.append(int(answer[1]))
        return answer

    def destroyed(handle: object) -> tuple[object, ...]:
        handles.remove(int(handle))  # type: ignore[call-overload]
        return destroy(handle)

    monkeypatch.setattr(bindings, "nvrtcCreateProgram", created)
    monkeypatch.setattr(bindings, "nvrtcDestroyProgram", destroyed)
    return handles


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (program_of("store_swiglu", TOO_LARGE, torch.float16), r"gemm\.cu.*registers"),
        # Its sums leave the registers, and the tensor cores' instructions would run one after another.
        (program_of("store_swiglu", tile_for(272, 3), torch.float16), "serialized"),
        (Program("gemm.cu", "#define TOKENS nothing", "gemm"), "error"),
    ],
    ids=["no room", "serialized", "no program"],
)
def test_compile_program_that_fails_says_why_and_leaves_nothing_behind(
    program: Program, reason: str, open_programs: list[int]
) -> None:
    with pytest.raises(RuntimeError, match=reason):
        nvrtc.compile_program(program)
    assert open_programs == []


def test_compile_program_whose_code_cannot_be_read_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, open_programs: list[int]
) -> None:
    from cuda.bindings import nvrtc as bindings

    monkeypatch.setattr(bindings, "nvrtcGetCUBIN", lambda *_: (bindings.nvrtcResult.NVRTC_ERROR_INTERNAL_ERROR,))
    with pytest.raises(RuntimeError, match="INTERNAL_ERROR"):
        nvrtc.compile_program(program_of("store_partial", tile_for(8, 1), torch.float16))
    assert open_programs == []


@pytest.mark.parametrize(
    ("shape", "most", "num_tokens", "warpgroups", "splits"),
    [
        ((4096, 11008), 2, 150, 2, 4),  # Llama-2-7B's down, and its query, key and value
        ((12288, 4096), 3, 50, 3, 2),
        ((2048, 8192), 2, 150, 1, 4),  # few units, as Llama-3.2-1B has them
        ((576, 1536), 2, 10, 1, 6),
        ((576, 1536), 2, 300, 1, 6),
        ((576, 1536), 2, 301, None, None),
        ((576, 200), 2, 10, None, None),  # not enough to split
        ((570, 1536), 2, 10, None, None),
    ],
)
def test_split_k_gemm_of_a_narrow_weight_has_narrow_tiles(
    shape: tuple[int, int],
    most: int,
    num_tokens: int,
    warpgroups: int | None,
    splits: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 132)
    found = split_k_gemm(num_tokens, torch.empty(shape, device="meta"), most_warpgroups=most, narrow=300)
    assert (found and found.tile.warpgroups, found and found.splits) == (warpgroups, splits)


def test_limits_on_a_chip_are_its_own() -> None:
    assert limits_on("NVIDIA H100 80GB HBM3") == LIMITS["H100"] != limits_on("NVIDIA H200") == LIMITS["H200"]
    assert limits_on("NVIDIA GH200 480GB") == LIMITS["H200"]


def test_compile_together_leaves_what_a_launch_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    wanted = [program_of("store_partial", tile_for(num_tokens, 2), torch.float16) for num_tokens in (1, 40)]
    nvrtc.compile_together([*wanted, *wanted])
    assert len(list(tmp_path.rglob("kernel.cubin"))) == 2, "one for each tile"
    monkeypatch.setattr(nvrtc, "compile_program", None)
    nvrtc.compile_together(wanted)


def test_compile_together_of_a_gemm_that_does_not_compile_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="registers"):
        nvrtc.compile_together([program_of("store_swiglu", TOO_LARGE, torch.float16)])


def rows(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


# Llama-2-7B's; narrow ones; then a last unit that is not a whole tile, and a reduction that is no multiple of a stage.
WIDTHS = [(4096, 11008), (2048, 8192), (576, 1536), (840 * 8, 64 * 37)]


@pytest.mark.gpu
@pytest.mark.parametrize("chip", LIMITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("num_tokens", [*LENGTHS, *EDGES, 161, 300, 301])
def test_hopper_gemms_of_any_shape_equal_float32(
    num_tokens: int, widths: tuple[int, int], dtype: torch.dtype, chip: str
) -> None:
    hidden_width, inner = widths
    hopper, limit = HopperKernels(LIMITS[chip]), 1e-3 if dtype == torch.float16 else 8e-3
    normed = rows(num_tokens, hidden_width, dtype=dtype)
    gate_up = rows(2 * inner, hidden_width, dtype=dtype) / hidden_width**0.5
    gate, up = (normed.float() @ gate_up.float().T).chunk(2, dim=-1)
    gated = hopper.linear_swiglu(normed, gate_up)
    assert error(gated, F.silu(gate) * up) <= limit

    hidden, down = rows(num_tokens, hidden_width, dtype=dtype), rows(hidden_width, inner, dtype=dtype) / inner**0.5
    expected = hidden.float() + gated.float() @ down.float().T
    norm = rows(hidden_width, dtype=dtype)
    normed = hopper.linear_add_norm(hidden, gated, down, norm, 1e-5)
    assert error(hidden, expected) <= limit
    assert (
        error(normed, expected * torch.rsqrt(expected.square().mean(-1, keepdim=True) + 1e-5) * norm.float()) <= limit
    )


LLAMA = Heads(num_heads=32, num_kv_heads=32, head_dim=128, scale=128**-0.5, eps=1e-5)
GROUPED = Heads(num_heads=6, num_kv_heads=2, head_dim=64, scale=64**-0.5, eps=1e-5)  # 10 units


def projected(
    hopper: HopperKernels | ReferenceKernels, normed: Tensor, weight: Tensor, heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, keys and values of positions 3, 4, …, from what ``weight`` projects."""
    start, (num_tokens, _) = torch.tensor([3], device="cuda"), normed.shape
    angles = torch.arange(num_tokens + 3, device="cuda")[:, None] / torch.arange(1, heads.head_dim // 2 + 1).cuda()
    slots = [normed.new_zeros(heads.num_kv_heads, num_tokens + 3, heads.head_dim) for _ in range(2)]
    turn = (angles.cos(), angles.sin())
    qkv = hopper.project(normed, weight, None)
    queries = hopper.rotate_store(qkv, start, heads, HeadNorms(), Slots(*slots, *turn))
    return queries[:, : weight.shape[0] - 2 * heads.num_kv_heads * heads.head_dim], *(each[:, 3:] for each in slots)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("without_queries", [False, True])
@pytest.mark.parametrize(("heads", "width"), [(LLAMA, 4096), (GROUPED, 64 * 37)], ids=["llama", "grouped"])
@pytest.mark.parametrize("num_tokens", [1, 10, 17, 50, 64, 65, H100.projected, H100.projected + 1])
def test_hopper_projections_of_any_shape_equal_float32(
    num_tokens: int, heads: Heads, width: int, without_queries: bool, dtype: torch.dtype
) -> None:
    num_heads = 2 * heads.num_kv_heads + (0 if without_queries else heads.num_heads)
    normed, weight = rows(num_tokens, width, dtype=dtype), rows(num_heads * heads.head_dim, width, dtype=dtype)
    weight /= width**0.5
    actual = projected(HopperKernels(H100), normed, weight, heads)
    expected = projected(ReferenceKernels(), normed.float(), weight.float(), heads)
    for part, plain in zip(actual, expected, strict=True):
        assert part.numel() == 0 or error(part, plain) <= (1e-3 if dtype == torch.float16 else 8e-3)


@pytest.mark.gpu
def test_prepare_compiles_all_that_a_prompt_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    nvrtc.kernel_of.cache_clear()
    hopper, dtype = HopperKernels(H100), torch.float16
    gate_up, down = rows(22016, 4096, dtype=dtype), rows(4096, 11008, dtype=dtype)
    lengths = [randint(1, 200) for _ in range(3)] + [randint(1, H100.projected)]
    qkv = rows(3 * 4096, 4096, dtype=dtype)
    hopper.prepare(lengths, qkv, gate_up, (down,))
    monkeypatch.setattr(nvrtc, "compile_program", None)
    for num_tokens in lengths:
        normed, hidden = rows(num_tokens, 4096, dtype=dtype), rows(num_tokens, 4096, dtype=dtype)
        projected(hopper, normed, qkv, LLAMA)
        hopper.linear_add_norm(hidden, hopper.linear_swiglu(normed, gate_up), down, normed[0], 1e-5)


@pytest.mark.gpu
def test_hopper_gemms_captured_answer_the_same_in_every_replay() -> None:
    num_tokens = randint(1, 200)
    hopper, normed = HopperKernels(H100), rows(num_tokens, 4096, dtype=torch.float16)
    gate_up, down = rows(22016, 4096, dtype=torch.float16) / 64, rows(4096, 11008, dtype=torch.float16) / 105
    hidden, norm = torch.zeros_like(normed), rows(4096, dtype=torch.float16)

    def run() -> Tensor:
        hidden.zero_()
        for _ in range(5):  # kernels that overlap, on buffers that are used again
            out = hopper.linear_add_norm(hidden, hopper.linear_swiglu(normed, gate_up), down, norm, 1e-5)
        return out

    eager = run().clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(20):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, eager)
