"""Measures every constant of ``heuristics.py`` on the GPU it runs on, and prints it beside what is recorded.

    python -m hybridgraph.kernels.tune            # a table; needs an NVIDIA GPU
    python -m hybridgraph.kernels.tune --json     # one JSON document

A limit is the number of rows up to which one kernel serves, and above which another does. Its best value is the one at
which all lengths measured take the least time together. ``loss`` is how much longer they take with what is recorded:
about 1 % is what two runs of the same differ by, so ``range`` is from the least to the most that costs no more.

A choice is one of several shapes of the same kernel. Its loss is that of the recorded one against the quickest.

Times are of kernels alone, in short rounds that take turns. Whole prefills back to back run at the chip's power cap,
where a limit may lie elsewhere: that is what README.md beside this reports.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hybridgraph.kernels.bench import CONTEXT, EPS, gpu_workload, parser
from hybridgraph.kernels.heuristics import (
    ENOUGH_PARTS,
    PACKED_ROW,
    SHARING_TOKENS,
    AttendBlock,
    Blocks,
    GemvBlock,
    Limits,
    PackedRow,
    limits_on,
)
from hybridgraph.kernels.hopper.gemm import Gemm, Tile
from hybridgraph.kernels.hopper.gemv import gemv_of
from hybridgraph.kernels.hopper.kernels import MAX_WARPGROUPS, HopperKernels, split_k_gemm
from hybridgraph.kernels.packed import pack
from hybridgraph.kernels.portable import TritonKernels
from hybridgraph.kernels.protocol import HeadNorms, Matrix, plain_of
from hybridgraph.kernels.replay import Work, compared_us
from hybridgraph.kernels.select import kernels_for
from hybridgraph.kernels.workload import MATRICES, Workload
from hybridgraph.machine.device import device_name
from hybridgraph.roofline import ModelShape
from hybridgraph.system.console import guarded, printing, progress_bars

NOISE = 0.01  # two runs of the same differ by as much
# A model whose matrices have few units of 64 rows (SmolLM2-135M).
NARROW = ModelShape(
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    bytes_per_element=2,
)
GEMV_BLOCKS = (
    GemvBlock(1, 1024, 4),
    GemvBlock(2, 1024, 4),
    GemvBlock(4, 1024, 4),
    GemvBlock(2, 2048, 4),
    GemvBlock(4, 2048, 8),
    GemvBlock(8, 1024, 8),
)
ATTEND_BLOCKS = (  # each for a prompt of so many tokens
    ("attend_few", 10, (AttendBlock(16, 32, 4, 2), AttendBlock(16, 64, 4, 2), AttendBlock(16, 32, 2, 2))),
    ("attend_some", 150, (AttendBlock(64, 64, 4, 2), AttendBlock(64, 32, 4, 2), AttendBlock(32, 64, 4, 2))),
    ("attend_many", 400, (AttendBlock(64, 64, 4, 3), AttendBlock(64, 64, 4, 2), AttendBlock(128, 64, 8, 3))),
)
PACKED_ROWS = (
    PackedRow(8, 118 * 1024),
    PackedRow(8, 165 * 1024),
    PackedRow(16, 165 * 1024),
    PackedRow(16, 210 * 1024),
)
ALWAYS = 10_000  # a limit that no length measured reaches
ACTIVATION_ROWS = 300  # of what passes over activations


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit, and lengths on both sides of it."""

    name: str
    recorded: int
    lengths: Sequence[int]
    sides: Callable[[int], tuple[Work, Work]]  # what takes a length up to the limit, and what beyond it


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A constant whose value is one of several."""

    name: str
    recorded: Any
    candidates: Mapping[Any, Work]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a constant was measured to be."""

    name: str
    recorded: str
    measured: str
    range: str
    loss: float  # how much longer what is recorded takes than what is best


def best_limit(
    lengths: Sequence[int], below: Sequence[float], above: Sequence[float], recorded: int
) -> tuple[int, tuple[int, int], float]:
    """The limit at which times are least in all, the range that costs at most NOISE more, the loss of ``recorded``.

    ``below`` and ``above``: what each of the ascending ``lengths`` takes on either side of the limit. A limit of 0 has
    all of them above it.
    """

    def total(limit: int) -> float:
        return sum(b if length <= limit else a for length, b, a in zip(lengths, below, above, strict=True))

    limits = [0, *lengths]
    least = min(map(total, limits))
    near = [limit for limit in limits if total(limit) <= least * (1 + NOISE)]
    return min(limits, key=total), (near[0], near[-1]), total(recorded) / least - 1


def find(probe: Limit | Choice) -> Finding:
    """Measure ``probe``."""
    return _find_limit(probe) if isinstance(probe, Limit) else _find_choice(probe)


def _find_limit(probe: Limit) -> Finding:
    below, above = zip(*(_both_us(*probe.sides(length)) for length in probe.lengths), strict=True)
    best, (least, most), loss = best_limit(probe.lengths, below, above, probe.recorded)
    return Finding(
        name=probe.name, recorded=str(probe.recorded), measured=str(best), range=f"{least} to {most}", loss=loss
    )


def _both_us(below: Work, above: Work) -> tuple[float, float]:
    """What both sides take; infinitely long where the compiler refuses the one below."""
    try:
        us = compared_us({"below": below, "above": above})
    except RuntimeError as error:
        if "registers" not in str(error) and "serialized" not in str(error):
            raise
        return float("inf"), compared_us({"above": above})["above"]
    return us["below"], us["above"]


def _find_choice(probe: Choice) -> Finding:
    us = compared_us(probe.candidates)
    best = min(us, key=us.__getitem__)
    near = [_told(value) for value in us if us[value] <= us[best] * (1 + NOISE) and value != best]
    return Finding(
        name=probe.name,
        recorded=_told(probe.recorded),
        measured=_told(best),
        range=" ".join(near),
        loss=us[probe.recorded] / us[best] - 1,
    )


def _told(value: Any) -> str:
    """A block's numbers with strokes between them."""
    return "/".join(map(str, asdict(value).values())) if hasattr(value, "__dataclass_fields__") else str(value)


def triton_probes(work: Workload) -> Iterator[Limit | Choice]:
    """Those of ``Blocks``, but for what hangs on Hopper's GEMMs."""
    yield from _gemv_probes(work)
    yield from _attend_probes(work)
    yield _one_row_attend_probe(work, "attention_programs", (128, 256, 512, 1024))
    yield _one_row_attend_probe(work.like(NARROW), "attention_splits", (16, 32, 64))
    yield _swiglu_probe(work)
    yield _rotate_probe(work.like(NARROW))


def _kernels(**blocks: Any) -> TritonKernels:
    return TritonKernels(replace(Blocks(), **blocks))


def _gemv_probes(work: Workload) -> Iterator[Choice]:
    shape = work.shape
    hidden, norm = work.random(1, shape.hidden_size), work.random(shape.hidden_size)
    rows = {matrix: work.random(1, work.matrix_shape(matrix)[1]) for matrix in ("out", "down")}

    def run(kernels: TritonKernels, matrix: str, weight: Tensor) -> None:
        if matrix == "gate_up":
            kernels.one_row_swiglu(hidden, norm, EPS, weight)
        elif matrix == "qkv":
            kernels.one_row_linear(hidden, norm, EPS, weight, None)
        else:
            kernels.one_row_add(hidden, rows[matrix], weight)

    for name, matrix in (("swiglu", "gate_up"), ("long", "down"), ("tall", "qkv"), ("square", "out")):
        weights = work.matrices(matrix)

        def with_block(block: GemvBlock, name: str = name, matrix: str = matrix, weights: Any = weights) -> Work:
            kernels = _kernels(**{f"gemv_{name}": block})
            return Work(lambda weight: run(kernels, matrix, weight), weights)

        recorded = getattr(Blocks(), f"gemv_{name}")
        yield Choice(
            name=f"gemv_{name}",
            recorded=recorded,
            candidates={block: with_block(block) for block in dict.fromkeys([recorded, *GEMV_BLOCKS])},
        )


def _attend_probes(work: Workload) -> Iterator[Limit | Choice]:
    heads, start = work.heads, work.index(0)

    def attending(length: int, **blocks: Any) -> Work:
        kernels, slots = _kernels(**blocks), work.slots(length)
        rows = work.sets(length, work.matrix_shape("qkv")[0])
        return Work(lambda queries: kernels.attend(queries, start, heads, slots), rows)

    for name, length, blocks in ATTEND_BLOCKS:
        candidates = {block: attending(length, **{name: block}) for block in blocks}
        yield Choice(name=name, recorded=getattr(Blocks(), name), candidates=candidates)
    for name, lengths in (("few_queries", (8, 16, 24, 32, 48)), ("some_queries", (100, 200, 300, 350, 400, 500))):

        def sides(length: int, name: str = name) -> tuple[Work, Work]:
            return attending(length, **{name: length}), attending(length, **{name: 0})

        yield Limit(name=name, recorded=getattr(Blocks(), name), lengths=lengths, sides=sides)


def _one_row_attend_probe(work: Workload, name: str, values: Sequence[int]) -> Choice:
    heads, position = work.heads, work.index(CONTEXT - 1)
    slots = [work.slots(CONTEXT) for _ in range(work.num_sets(2, heads.num_kv_heads, CONTEXT, heads.head_dim))]
    row = work.random(1, work.matrix_shape("qkv")[0])

    def attending(value: int) -> Work:
        by = _kernels(**{name: value})
        return Work(lambda each: by.one_row_attend(row, position, heads, HeadNorms(), each, store=True), slots)

    return Choice(name=name, recorded=getattr(Blocks(), name), candidates={value: attending(value) for value in values})


def _swiglu_probe(work: Workload) -> Choice:
    merged = work.sets(ACTIVATION_ROWS, 2 * work.shape.intermediate_size)
    candidates = {columns: Work(_kernels(swiglu_columns=columns).swiglu, merged) for columns in (512, 1024, 2048)}
    return Choice(name="swiglu_columns", recorded=Blocks().swiglu_columns, candidates=candidates)


def _rotate_probe(work: Workload) -> Choice:
    heads, slots, start = work.heads, work.slots(ACTIVATION_ROWS), work.index(0)
    projected = work.sets(1, ACTIVATION_ROWS, work.matrix_shape("qkv")[0])

    def rotating(count: int) -> Work:
        by = _kernels(rotate_heads=count)
        return Work(lambda qkv: by.rotate_store(qkv, start, heads, HeadNorms(), slots), projected)

    candidates = {count: rotating(count) for count in (4, 8, 16)}
    return Choice(name="rotate_heads", recorded=Blocks().rotate_heads, candidates=candidates)


def hopper_probes(work: Workload, limits: Limits) -> Iterator[Limit | Choice]:
    """Those of ``Limits``, of the custom GEMMs' tiles, and of the norm in front of one."""
    never = Limits(**dict.fromkeys(asdict(limits), 0))
    custom, cublas = HopperKernels(Limits(**dict.fromkeys(asdict(limits), ALWAYS))), HopperKernels(never)
    for name, of, matrix, lengths in (
        ("projected", work, "qkv", range(16, 145, 16)),
        ("swiglu", work, "gate_up", range(160, 281, 8)),
        ("added", work, "down", range(208, 401, 16)),
        ("square", work, "out", range(64, 273, 16)),
        ("narrow", work.like(NARROW), "down", range(100, 401, 50)),
    ):
        run = _in_forward(of, matrix)

        def sides(length: int, run: Callable[[HopperKernels, int], Work] = run) -> tuple[Work, Work]:
            return run(custom, length), run(cublas, length)

        yield Limit(name=name, recorded=getattr(limits, name), lengths=lengths, sides=sides)
    yield _norm_probe(work, limits)
    yield _sharing_probe(work)
    yield _parts_probe(work.like(NARROW))
    if work.dtype == torch.float16:
        yield from (_packed_row_probe(work, matrix) for matrix in MATRICES)
        yield from _packed_limit_probes(work, limits)


def _packed_limit_probes(work: Workload, limits: Limits) -> Iterator[Limit]:
    """Packed against whatever is quickest on plain weights."""
    for name, matrix in (("projected", "qkv"), ("swiglu", "gate_up"), ("added", "down"), ("square", "out")):
        field = f"packed_{name}"
        packed, plain = (HopperKernels(replace(limits, **{field: most})) for most in (ALWAYS, 0))
        run = _in_forward(work, matrix, packed=True)

        def sides(
            length: int,
            packed: HopperKernels = packed,
            plain: HopperKernels = plain,
            run: Callable[[HopperKernels, int], Work] = run,
        ) -> tuple[Work, Work]:
            return run(packed, length), run(plain, length)

        lengths = range(16, 177, 16)
        yield Limit(name=field, recorded=getattr(limits, field), lengths=lengths, sides=sides)


def _in_forward(work: Workload, matrix: str, *, packed: bool = False) -> Callable[[HopperKernels, int], Work]:
    """What the forward does with ``matrix``, up to the next one: a sum, norm or rotation is part of a GEMM's price."""
    weights: list[Matrix] = list(work.matrices(matrix))
    if packed:
        weights = [replace(pack(plain_of(each), merged=matrix == "gate_up"), plain=plain_of(each)) for each in weights]
    shape, heads = work.shape, work.heads
    norm, start = work.random(shape.hidden_size), work.index(0)

    def run(kernels: HopperKernels, length: int) -> Work:
        rows, hidden = work.random(length, weights[0].shape[1]), work.random(length, shape.hidden_size)
        slots = work.slots(length)

        def once(weight: Matrix) -> object:
            if matrix == "qkv":
                return kernels.rotate_store(kernels.project(rows, weight, None), start, heads, HeadNorms(), slots)
            if matrix == "gate_up":
                return kernels.linear_swiglu(rows, weight)
            return kernels.linear_add_norm(hidden, rows, weight, norm, EPS)

        return Work(once, weights)

    return run


def _norm_probe(work: Workload, limits: Limits) -> Limit:
    """The norm between attention's output and gate and up."""
    out, gate_up = work.matrices("out"), work.matrices("gate_up")
    pairs = [(out[i % len(out)], gate_up[i % len(gate_up)]) for i in range(max(len(out), len(gate_up)))]
    norm = work.random(work.shape.hidden_size)

    def run(length: int, wide: int) -> Work:
        kernels = HopperKernels(limits, replace(Blocks(), wide_norm_rows=wide))
        rows, hidden = work.random(length, out[0].shape[1]), work.random(length, work.shape.hidden_size)
        return Work(
            lambda pair: kernels.linear_swiglu(kernels.linear_add_norm(hidden, rows, pair[0], norm, EPS), pair[1]),
            pairs,
        )

    return Limit(
        name="wide_norm_rows",
        recorded=Blocks().wide_norm_rows,
        lengths=(32, 64, 96, 128, 160, 192),
        sides=lambda length: (run(length, length), run(length, 0)),
    )


def _sharing_probe(work: Workload) -> Limit:
    weights = work.matrices("gate_up")

    def gate_up(length: int, cluster: int) -> Work:
        rows, out = work.random(length, weights[0].shape[1]), work.random(length, weights[0].shape[0] // 2)
        gemm = Gemm("store_swiglu", Tile(MAX_WARPGROUPS, length, cluster))
        return Work(lambda weight: gemm(rows, weight, out, overlap=True), weights)

    return Limit(
        name="SHARING_TOKENS",
        recorded=SHARING_TOKENS - 8,  # tokens up to which nothing is shared
        lengths=(8, 16, 24, 32, 48, 64),
        sides=lambda length: (gate_up(length, 1), gate_up(length, 2)),
    )


def _parts_probe(work: Workload) -> Choice:
    weights, length = work.matrices("down"), 100
    rows = work.random(length, weights[0].shape[1])

    def split(parts: int) -> Work:
        gemm = split_k_gemm(length, weights[0], most_warpgroups=2, narrow=length, enough_parts=parts)
        assert gemm is not None, "a narrow matrix is split"
        out = work.random(gemm.splits, length, weights[0].shape[0])
        return Work(lambda weight: gemm(rows, weight, out, overlap=True), weights)

    return Choice(name="ENOUGH_PARTS", recorded=ENOUGH_PARTS, candidates={parts: split(parts) for parts in (2, 4, 6)})


def _packed_row_probe(work: Workload, matrix: str) -> Choice:
    matrices = [pack(weight, merged=matrix == "gate_up") for weight in work.matrices(matrix)]
    norm = None if matrix in ("out", "down") else work.random(matrices[0].shape[1])
    row, out = work.random(1, matrices[0].shape[1]), work.random(1, work.matrix_shape(matrix)[0])
    if matrix == "gate_up":
        out = out[:, : work.shape.intermediate_size]

    def with_tuned(tuned: PackedRow) -> Work:
        gemv = replace(gemv_of(matrices[0], norm=norm is not None, add=norm is None), tuned=tuned)
        return Work(lambda each: gemv(row, each, out, norm=norm, eps=EPS, overlap=True), matrices)

    candidates = {tuned: with_tuned(tuned) for tuned in dict.fromkeys([PACKED_ROW, *PACKED_ROWS])}
    return Choice(name=f"PACKED_ROW {matrix}", recorded=PACKED_ROW, candidates=candidates)


def table(findings: Sequence[Finding]) -> str:
    """``findings`` as text of at most 80 columns."""
    lines = [f"{'constant':18} {'recorded':>12} {'measured':>12} {'loss':>7}  within {NOISE:.0%} of the best"]
    lines += [f"{f.name:18} {f.recorded:>12} {f.measured:>12} {f.loss:7.1%}  {f.range}"[:80] for f in findings]
    return "\n".join(lines)


@guarded(interrupted="interrupted")
@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser(__doc__).parse_args(argv)
    work = gpu_workload("kernels.tune", arguments.model, arguments.dtype)
    chip = device_name(work.device)
    findings = []
    with progress_bars() as tell:
        for done, probe in enumerate(_probes(work, chip)):
            tell(probe.name, done, 0)
            findings.append(find(probe))
    with printing():
        if arguments.json:
            print(json.dumps({"device": chip, "findings": [asdict(finding) for finding in findings]}))
        else:
            print(f"{chip}, {arguments.model}, {arguments.dtype}")
            print(table(findings))
    return 0


def _probes(work: Workload, chip: str) -> Iterator[Limit | Choice]:
    yield from triton_probes(work)
    if kernels_for(work.device, work.dtype).name == "hopper":
        yield from hopper_probes(work, limits_on(chip))


if __name__ == "__main__":
    sys.exit(main())
