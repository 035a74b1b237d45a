"""The kernels' bench and tune: what they count and decide here, and on a GPU that they run."""

import json
import math
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

from hybridgraph.kernels import bench, tune
from hybridgraph.kernels.bench import Case, Timing
from hybridgraph.kernels.heuristics import Blocks, Limits, limits_on
from hybridgraph.kernels.hopper import kernels
from hybridgraph.kernels.protocol import Kernels
from hybridgraph.kernels.reference import ReferenceKernels
from hybridgraph.kernels.tune import Finding, best_limit
from hybridgraph.kernels.workload import MATRICES, Workload
from hybridgraph.models.shapes import builtin_config
from hybridgraph.roofline import ModelShape, Rates

ROWS = (3, 9)


def shape_of(model: str) -> ModelShape:
    shape = ModelShape.from_config(builtin_config(model) or {}, "float16")
    assert shape is not None
    return shape


def small_work(dtype: torch.dtype = torch.float32) -> Workload:
    return Workload(shape_of("tiny-llama"), dtype, torch.device("cpu"), cache_bytes=1 << 16)


@pytest.fixture
def cases() -> list[Case]:
    return list(bench.cases(small_work(), ReferenceKernels(), ROWS))


@pytest.mark.parametrize("program", ["bench", "tune"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_main_without_a_gpu_says_so_in_one_line(program: str) -> None:
    run = subprocess.run([sys.executable, "-m", f"hybridgraph.kernels.{program}"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.count("\n") == 1 and "NVIDIA GPU" in run.stderr


def test_cases_cover_every_kernel_and_matrix(cases: list[Case]) -> None:
    kernels = {name for name in vars(Kernels) if not name.startswith("_")} - {
        "name",
        "reads_masked",
        "reads_packed",
        "prepare",
    }
    assert {case.kernel for case in cases} == kernels
    assert {case.matrix for case in cases} == {"", *MATRICES}
    packed = bench.cases(small_work(torch.float16), ReferenceKernels(), ())
    assert {case.matrix for case in packed} == {"", *MATRICES, *(f"{name}, packed" for name in MATRICES)}
    assert {case.rows for case in cases} == {1, *ROWS}


def test_cases_run_on_both_sides(cases: list[Case]) -> None:
    for case in [*cases, *bench.cases(small_work(torch.float16), ReferenceKernels(), ())]:
        case.ours.run_all()
        case.replaced.run_all()
        assert len(case.ours.sets) == len(case.replaced.sets) >= 2


def test_sets_together_exceed_the_cache_four_times() -> None:
    work = Workload(shape_of("tiny-llama"), torch.float16, torch.device("cpu"), cache_bytes=1 << 20)
    weights = work.matrices("qkv")
    num_bytes = weights[0].numel() * 2
    assert len(weights) == math.ceil(4 * (1 << 20) / num_bytes)
    assert not torch.equal(weights[0], weights[1])


def test_floor_of_a_row_times_a_matrix_is_what_its_weights_take() -> None:
    work = Workload(shape_of("llama-2-7b"), torch.bfloat16, torch.device("meta"), cache_bytes=1)
    rates = Rates(bytes_per_s=4e12, flops_per_s=8e14)
    floors = {
        (case.kernel, case.matrix): case.floor_us(rates)
        for case in bench._one_row_cases(work, ReferenceKernels())
        if case.matrix
    }
    assert floors["one_row_linear", "qkv"] == pytest.approx(12288 * 4096 * 2 / 4e6, rel=1e-3)
    assert floors["one_row_swiglu", "gate_up"] == pytest.approx(22016 * 4096 * 2 / 4e6, rel=1e-3)
    case = bench._multiplying("project", "qkv", work, 1000, lambda rows, weight: None)
    assert case.floor_us(rates) == pytest.approx(2 * 1000 * 12288 * 4096 / 8e8, rel=1e-3), "operations set the pace"


@pytest.mark.parametrize(
    ("below", "above", "recorded", "expected"),
    [
        ((1, 1, 3), (2, 2, 2), 20, (20, (20, 20), 0.0)),
        ((1, 1, 3), (2, 2, 2), 10, (20, (20, 20), 0.25)),
        ((3, 3, 3), (2, 2, 2), 0, (0, (0, 0), 0.0)),
        ((1, 1, 1), (2, 2, 2), 25, (30, (30, 30), 1 / 3)),  # between two lengths: as the one before
        ((1, 2.001, 2), (2, 2, 2), 20, (10, (10, 30), 0.001 / 5)),
        ((1, 1, math.inf), (2, 2, 2), 20, (20, (20, 20), 0.0)),  # a kernel that cannot be compiled
    ],
)
def test_best_limit_takes_least_time_over_all_lengths(
    below: tuple[float, ...], above: tuple[float, ...], recorded: int, expected: tuple[int, tuple[int, int], float]
) -> None:
    limit, near, loss = best_limit((10, 20, 30), below, above, recorded)
    assert (limit, near) == expected[:2]
    assert loss == pytest.approx(expected[2])


def test_probes_cover_every_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 132)
    work, limits = small_work(torch.float16), limits_on("H200")
    probes = [*tune.triton_probes(work), *tune.hopper_probes(work, limits)]
    tuned = {field.name for of in (Blocks, Limits) for field in fields(of)} | {"SHARING_TOKENS", "ENOUGH_PARTS"}
    tuned |= {f"PACKED_ROW {name}" for name in MATRICES}
    assert {probe.name for probe in probes} == tuned
    for probe in probes:
        if isinstance(probe, tune.Choice):
            assert probe.recorded in probe.candidates and len(probe.candidates) > 1
        elif probe.name != "SHARING_TOKENS":
            holders = [holder for holder in (Blocks(), limits) if hasattr(holder, probe.name)]
            assert [getattr(holder, probe.name) for holder in holders] == [probe.recorded]


def test_tables_fit_80_columns() -> None:
    timing = Timing(
        kernel="linear_add_norm", matrix="gate_up, packed", rows=4096, us=12345.67, floor_us=12.3, replaced_us=9.9
    )
    finding = Finding(
        name="attention_programs", recorded="64/64/4/3", measured="128/64/8/3", range="8 " * 50, loss=0.123
    )
    lines = [*bench.table([timing]).splitlines(), *tune.table([finding]).splitlines()]
    assert len(lines) == 4 and max(map(len, lines)) <= 80


@pytest.mark.gpu
@pytest.mark.parametrize("program", [bench, tune], ids=["bench", "tune"])
def test_main_on_a_gpu_prints_one_json_document(program: object, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["--rows", "10,100"] if program is bench else []
    assert program.main(["--model", "tiny-llama", "--json", *rows]) == 0  # type: ignore[attr-defined]
    document = json.loads(capsys.readouterr().out)
    assert document.get("timings") or document.get("findings")
