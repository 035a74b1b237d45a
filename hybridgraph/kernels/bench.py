"""Times every kernel against what it replaces and against its own floor, by matrix and number of rows.

    python -m hybridgraph.kernels.bench            # a table; needs an NVIDIA GPU
    python -m hybridgraph.kernels.bench --json     # one JSON document

``us`` is device time of one launch, among replays of a graph that holds the kernel once for each set of inputs; the
sets do not fit the L2 cache, so weights come from memory. Launches overlap here as they do in the forward.

``replaced_us``: cuBLAS's product alone for whatever multiplies by a matrix, without what our kernel does besides
(SwiGLU, a norm, a sum); plain PyTorch for the rest.

``floor_us``: the longer of bytes that must be read and written over the measured bandwidth, and operations over the
measured matrix rate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgraph.config import DTYPES
from hybridgraph.errors import UserError
from hybridgraph.kernels.packed import pack
from hybridgraph.kernels.protocol import HeadNorms, Kernels, Matrix
from hybridgraph.kernels.reference import ReferenceKernels
from hybridgraph.kernels.replay import Work, compared_us
from hybridgraph.kernels.select import kernels_for
from hybridgraph.kernels.workload import Workload
from hybridgraph.machine.device import device_name, measure_rates
from hybridgraph.models.hub import known_numbers
from hybridgraph.models.shapes import DEFAULT_GPU_MODEL
from hybridgraph.roofline import ModelShape, Rates
from hybridgraph.settings import parse_lengths
from hybridgraph.system.console import guarded, printing, progress_bars

ROWS = (10, 50, 100, 200, 400)
CONTEXT = 512  # positions that one row attends over
EPS = 1e-5
TEMPERATURE = 0.7


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel on inputs of one size, and what it replaces."""

    kernel: str
    matrix: str = ""  # one of MATRICES, where it multiplies by one
    rows: int
    ours: Work
    replaced: Work
    num_bytes: int  # read and written, each once
    flops: int = 0

    def floor_us(self, rates: Rates) -> float:
        return max(self.num_bytes / rates.bytes_per_s, self.flops / rates.flops_per_s) * 1e6


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a case took."""

    kernel: str
    matrix: str
    rows: int
    us: float
    floor_us: float
    replaced_us: float


def cases(work: Workload, kernels: Kernels, rows: Sequence[int]) -> Iterator[Case]:
    """Every kernel: those of one row, sampling, and those of prompts of ``rows``; inputs are made as they come."""
    yield from _one_row_cases(work, kernels)
    if work.device.type == "cuda":
        yield from _sampling(work)
    for length in rows:
        yield from _prompt_cases(work, kernels, length)


def _multiplying(
    kernel: str, matrix: str, work: Workload, rows: int, ours: Callable[[Tensor, Tensor], object], extra: int = 0
) -> Case:
    """A kernel that multiplies ``rows`` activations by a matrix; ``extra``: elements read or written besides."""
    weights = work.matrices(matrix)
    outputs, inputs = weights[0].shape
    activations = work.random(rows, inputs)
    elements = outputs * inputs + rows * inputs + extra
    return Case(
        kernel=kernel,
        matrix=matrix,
        rows=rows,
        ours=Work(lambda weight: ours(activations, weight), weights),
        replaced=Work(lambda weight: F.linear(activations, weight), weights),
        num_bytes=elements * work.dtype.itemsize,
        flops=2 * rows * outputs * inputs,
    )


def _one_row_cases(work: Workload, kernels: Kernels) -> Iterator[Case]:
    hidden, norm = work.random(1, work.shape.hidden_size), work.random(work.shape.hidden_size)

    def linear(row: Tensor, weight: Matrix) -> Tensor:
        return kernels.one_row_linear(row, norm, EPS, weight, None)

    def add(row: Tensor, weight: Matrix) -> None:
        kernels.one_row_add(hidden, row, weight)

    def swiglu(row: Tensor, weight: Matrix) -> Tensor:
        return kernels.one_row_swiglu(row, norm, EPS, weight)

    for matrix, kernel, run in (
        ("qkv", "one_row_linear", linear),
        ("out", "one_row_add", add),
        ("gate_up", "one_row_swiglu", swiglu),
        ("down", "one_row_add", add),
        ("head", "one_row_linear", linear),
    ):
        outputs = work.matrix_shape(matrix)[0]
        extra = {"one_row_linear": outputs, "one_row_add": 2 * outputs, "one_row_swiglu": outputs // 2}[kernel]
        yield _multiplying(kernel, matrix, work, 1, run, extra)
        if kernels.reads_packed and work.dtype == torch.float16:
            yield _packed(_multiplying(kernel, matrix, work, 1, run, extra), work, run)
    yield _one_row_attend(work, kernels)


def _packed(case: Case, work: Workload, run: Callable[[Tensor, Matrix], object]) -> Case:
    """The same on packed matrices."""
    weights = case.replaced.sets
    row = work.random(1, weights[0].shape[1])
    matrices = [pack(weight, merged=case.matrix == "gate_up") for weight in weights]
    fewer = weights[0].numel() * weights[0].itemsize - matrices[0].num_bytes
    return replace(
        case,
        matrix=f"{case.matrix}, packed",
        ours=Work(lambda matrix: run(row, matrix), matrices),
        num_bytes=case.num_bytes - fewer,
    )


def _one_row_attend(work: Workload, kernels: Kernels) -> Case:
    heads = work.heads
    slots = [work.slots(CONTEXT) for _ in range(work.num_sets(2, heads.num_kv_heads, CONTEXT, heads.head_dim))]
    row, position = work.random(1, work.matrix_shape("qkv")[0]), work.index(CONTEXT - 1)
    elements = slots[0].keys.numel() + slots[0].values.numel() + row.numel() + heads.query_width

    def attending(by: Kernels) -> Work:
        return Work(lambda each: by.one_row_attend(row, position, heads, HeadNorms(), each, store=True), slots)

    return Case(
        kernel="one_row_attend",
        rows=1,
        ours=attending(kernels),
        replaced=attending(ReferenceKernels()),
        num_bytes=elements * work.dtype.itemsize,
        flops=4 * heads.query_width * CONTEXT,
    )


def _sampling(work: Workload) -> Iterator[Case]:
    from hybridgraph.kernels.sampling import launch_greedy, launch_sample

    logits = work.sets(work.shape.vocab_size)
    token, told, draw = work.index(0), torch.zeros(1, dtype=torch.long).pin_memory(), torch.rand(1, device=work.device)

    def sampled(row: Tensor) -> None:
        torch.searchsorted(torch.softmax(row.float() / TEMPERATURE, -1).cumsum(-1), draw, out=token)

    for kernel, ours, replaced in (
        ("sample", lambda row: launch_sample(row, TEMPERATURE, 0.5, token, told, 0), sampled),
        ("greedy", lambda row: launch_greedy(row, token, told, 0), lambda row: torch.argmax(row, out=token[0])),
    ):
        num_bytes = logits[0].numel() * work.dtype.itemsize
        yield Case(kernel=kernel, rows=1, ours=Work(ours, logits), replaced=Work(replaced, logits), num_bytes=num_bytes)


def _prompt_cases(work: Workload, kernels: Kernels, rows: int) -> Iterator[Case]:
    shape = work.shape
    hidden, norm = work.random(rows, shape.hidden_size), work.random(shape.hidden_size)

    def project(activations: Tensor, weight: Tensor) -> Tensor:
        return kernels.project(activations, weight, None)

    def add_norm(activations: Tensor, weight: Tensor) -> Tensor:
        return kernels.linear_add_norm(hidden, activations, weight, norm, EPS)

    yield _embed_norm(work, kernels, rows)
    yield _multiplying("project", "qkv", work, rows, project, rows * work.matrix_shape("qkv")[0])
    yield from _attention(work, kernels, rows)
    yield _multiplying("linear_add_norm", "out", work, rows, add_norm, 3 * hidden.numel())
    yield _multiplying("linear_swiglu", "gate_up", work, rows, kernels.linear_swiglu, rows * shape.intermediate_size)
    yield _multiplying("linear_add_norm", "down", work, rows, add_norm, 3 * hidden.numel())


def _embed_norm(work: Workload, kernels: Kernels, rows: int) -> Case:
    table, norm = work.random(work.shape.vocab_size, work.shape.hidden_size), work.random(work.shape.hidden_size)
    start, ids = work.index(0), [torch.randint(table.shape[0], (rows,), device=work.device) for _ in range(8)]

    def embedding(by: Kernels) -> Work:
        return Work(lambda each: by.embed_norm(each, start, rows, table, norm, EPS), ids)

    return Case(
        kernel="embed_norm",
        rows=rows,
        ours=embedding(kernels),
        replaced=embedding(ReferenceKernels()),
        num_bytes=3 * rows * table.shape[1] * work.dtype.itemsize,
    )


def _attention(work: Workload, kernels: Kernels, rows: int) -> Iterator[Case]:
    heads, slots, start, plain = work.heads, work.slots(rows), work.index(0), ReferenceKernels()
    projected = work.sets(1, rows, work.matrix_shape("qkv")[0])
    width = projected[0].shape[2]

    def rotating(by: Kernels) -> Work:
        return Work(lambda qkv: by.rotate_store(qkv, start, heads, HeadNorms(), slots), projected)

    def attending(by: Kernels) -> Work:
        return Work(lambda qkv: by.attend(qkv[0], start, heads, slots), projected)

    yield Case(
        kernel="rotate_store",
        rows=rows,
        ours=rotating(kernels),
        replaced=rotating(plain),
        num_bytes=2 * rows * width * work.dtype.itemsize,
    )
    yield Case(
        kernel="attend",
        rows=rows,
        ours=attending(kernels),
        replaced=attending(plain),
        num_bytes=rows * (width + heads.query_width) * work.dtype.itemsize,
        flops=2 * heads.query_width * rows * (rows + 1),
    )


def table(timings: Sequence[Timing]) -> str:
    """``timings`` as text of at most 80 columns."""
    lines = [f"{'kernel':15} {'matrix':15} {'rows':>4} {'µs':>8} {'floor':>8} {'× floor':>7} {'replaced':>8} {'×':>5}"]
    lines += [
        f"{t.kernel:15} {t.matrix:15} {t.rows:4} {t.us:8.2f} {t.floor_us:8.2f} {t.us / t.floor_us:7.2f}"
        f" {t.replaced_us:8.2f} {t.us / t.replaced_us:5.2f}"
        for t in timings
    ]
    return "\n".join(lines)


def gpu_workload(program: str, model: str, dtype: str) -> Workload:
    """Inputs of the shape of ``model`` on the first GPU; raises UserError where ``program`` cannot time anything."""
    if not torch.cuda.is_available():
        raise UserError(f"{program} times kernels on an NVIDIA GPU, and this machine has none that torch can use")
    shape = ModelShape.from_config(known_numbers(model, "dummy"), dtype)
    if shape is None:
        raise UserError(f"model '{model}': {program} knows the kernels of decoders with gated MLPs, such as llama-2-7b")
    device = torch.device("cuda", torch.cuda.current_device())
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return Workload(shape, getattr(torch, dtype), device, cache_bytes)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The flags of whatever times kernels."""
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", default=DEFAULT_GPU_MODEL, help="whose shape: a built-in one, a directory, a hub id")
    flags.add_argument("--dtype", default="float16", choices=[name for name in DTYPES if name != "float32"])
    flags.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return flags


@guarded(interrupted="interrupted")
@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    flags = parser(__doc__)
    flags.add_argument("--rows", type=parse_lengths, default=ROWS, metavar="SPEC", help="of prompts: 10,50,100 …")
    arguments = flags.parse_args(argv)
    work = gpu_workload("kernels.bench", arguments.model, arguments.dtype)
    rates = measure_rates(work.device, work.dtype)
    assert rates is not None, "there is a GPU"
    kernels = kernels_for(work.device, work.dtype)
    timings = []
    with progress_bars() as tell:
        for done, case in enumerate(cases(work, kernels, arguments.rows)):
            tell(case.kernel, done, 0)
            timings.append(timed(case, rates))
    what = {"device": device_name(work.device), "model": arguments.model, "dtype": arguments.dtype}
    with printing():
        if arguments.json:
            print(json.dumps({**what, "rates": asdict(rates), "timings": [asdict(timing) for timing in timings]}))
        else:
            gb_per_s, tflops = rates.bytes_per_s / 1e9, rates.flops_per_s / 1e12
            print(f"{', '.join(what.values())}; measured {gb_per_s:,.0f} GB/s, {tflops:,.0f} TFLOP/s")
            print(table(timings))
    return 0


def timed(case: Case, rates: Rates) -> Timing:
    """Both sides of ``case``, in turns."""
    us = compared_us({"ours": case.ours, "replaced": case.replaced})
    return Timing(
        kernel=case.kernel,
        matrix=case.matrix,
        rows=case.rows,
        us=us["ours"],
        floor_us=case.floor_us(rates),
        replaced_us=us["replaced"],
    )


if __name__ == "__main__":
    sys.exit(main())
