"""Launches: each start of a case's processes told apart, from the samples to the tables, and resumed one by one."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkouts import RECORDING_MAIN, ROOT, calls_of, environ, make_checkout, start
from test_runner import CountingSource, config, measure, rows

from hybridgraph.bench.run import _added, is_complete
from hybridgraph.bench.store import ResultFiles
from hybridgraph.cases import CASE1, CASES
from hybridgraph.cli.study import schedule
from hybridgraph.errors import UserError
from hybridgraph.report.evidence import gather
from hybridgraph.report.load import load_results
from hybridgraph.report.tables import TTFT, WARM

SHOWN = 5  # cases of a complete run without TensorRT-LLM


def launch(directory: Path, number: int, **settings: Any) -> list[tuple[str, str, int]]:
    """Measure a launch with a fresh source; what all samples so far are: phase, warmth and launch."""
    results = measure(CountingSource(), config(directory, launch=number, **settings), CASE1)
    return [(sample.phase, sample.warmth, sample.launch) for sample in results.samples]


def test_launches_are_told_apart_and_each_has_its_cold_request(tmp_path: Path) -> None:
    first, both = launch(tmp_path, 1), launch(tmp_path, 2)
    assert [(phase, warmth, 1) for phase, warmth, _ in first] == both[: len(first)] == first
    assert both[len(first) :] == [(phase, warmth, 2) for phase, warmth, _ in first]
    assert [warmth for _, warmth, _ in both].count("cold") == 2
    (row, *_) = rows(tmp_path / "case1_baseline_ttft.csv")
    assert (row["launches"], row["samples"], row["warm_samples"]) == ("2", "4", "10")
    assert {row["launches"] for row in rows(tmp_path / "case1_baseline_p99.csv")} == {"2"}
    assert len({json.loads(line)["run_id"] for line in (tmp_path / "case1_baseline_samples.jsonl").open()}) == 1


def test_intervals_are_over_launches(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        launch(tmp_path, number)
    results = load_results(tmp_path)
    evidence = gather(tmp_path, results, CASES)
    assert evidence.launches == 3
    for metric in (WARM, TTFT):
        units = evidence.of(metric, CASE1)
        assert (units.basis, list(units.values.index)) == ("launches", [1, 2, 3])
        mean = results.tables["ttft"][CASE1.name][metric.column][3]
        assert units.of([3]).mean() == pytest.approx(mean, rel=1e-5)
        interval = units.mean([3])
        assert interval.low < mean < interval.high


def test_samples_from_before_launches_are_of_one(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    path = tmp_path / "case1_baseline_samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "launch"}) + "\n" for line in lines))
    for kind in ("ttft", "p99"):
        table = tmp_path / f"case1_baseline_{kind}.csv"
        old = [{k: v for k, v in row.items() if k != "launches"} for row in rows(table)]
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(old[0]))
            writer.writeheader()
            writer.writerows(old)
    assert gather(tmp_path, load_results(tmp_path), CASES).launches == 1
    assert {number for *_, number in launch(tmp_path, 2)} == {1, 2}


def test_a_launch_that_was_interrupted_goes_on_and_the_others_stay(tmp_path: Path) -> None:
    first = launch(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        measure(CountingSource(fail_after=7), config(tmp_path, launch=2), CASE1)
    files = ResultFiles(tmp_path, CASE1.name)
    assert [is_complete(files, config(tmp_path), number) for number in (1, 2, 3)] == [True, False, False]
    source = CountingSource()
    results = measure(source, config(tmp_path, launch=2, resume=True), CASE1)
    warmed, measured = source.requests[:2], source.requests[2:]
    assert [len(request.prompt_ids) for request in warmed] == [3, 7], "what this launch had seen"
    assert [len(request.prompt_ids) for request in measured] == [3] * 4 + [7] * 4
    assert [sample.launch for sample in results.samples] == [1] * len(first) + [2] * len(first)
    assert is_complete(files, config(tmp_path), 2)
    again = CountingSource()
    measure(again, config(tmp_path, launch=2), CASE1)
    assert again.requests == [], "a launch that is complete is not measured again"


def test_a_later_launch_needs_an_earlier_one_with_the_same_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--launch 2: .* has no earlier launch of case1_baseline"):
        launch(tmp_path, 2)
    launch(tmp_path, 1)
    with pytest.raises(UserError, match=r"--launch 2: the run in .* had seed 0, this one has 1"):
        launch(tmp_path, 2, seed=1)
    with pytest.raises(UserError, match="--launch 0"):
        config(tmp_path, launch=0)


def test_what_the_gpu_spent_is_added_up_over_launches() -> None:
    first = {"wall_ms": 10.0, "energy_j": 2.0, "power_capped_ms": "not told: Not Supported", "sm_clock_mhz": 1500}
    lap = {"wall_ms": 5.0, "energy_j": 1.0, "power_capped_ms": "not told: Not Supported", "sm_clock_mhz": 1400}
    assert _added(first, lap) == lap | {"wall_ms": 15.0, "energy_j": 3.0}
    assert _added({}, lap) == lap and _added({}, {}) == {}


def test_rounds_of_launches_alternate_in_their_order() -> None:
    names = [(number, case.key) for number, case in schedule(3)]
    keys = [case.key for case in CASES]
    assert names == [(1, k) for k in keys] + [(2, k) for k in reversed(keys)] + [(3, k) for k in keys]


def study(project: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    return start(project, "run_complete_benchmark.sh", *flags, HYBRIDGRAPH_PYTHON=sys.executable)


@pytest.mark.parametrize("flags", [("--launches", "2"), ("--launches=2",)])
def test_a_complete_run_starts_every_case_so_often(tmp_path: Path, flags: tuple[str, ...]) -> None:
    project = make_checkout(tmp_path / "checkout", RECORDING_MAIN)
    done = study(project, "--seed", "1", *flags)
    assert done.returncode == 0, done.stderr
    cases = ["case1", "case2", "case3", "case4", "case4 fused"]
    first = [f"case {case.split()[0]} --seed 1{' --forward fused' * ('fused' in case)}" for case in cases]
    second = [call.replace("--seed 1", "--seed 1 --launch=2") for call in reversed(first)]
    assert calls_of(project) == ["check --seed 1", *first, *second, "tables --output-dir=output --brief"]
    assert "== case1_baseline: case 1 of 6, launch 2 of 2" in done.stderr
    assert done.stderr.count("case5_tensorrt_llm is skipped") == 1


def test_a_case_that_failed_is_not_started_again(tmp_path: Path) -> None:
    project = make_checkout(tmp_path / "checkout", RECORDING_MAIN + '\nif "case2" in sys.argv: sys.exit(2)\n')
    done = study(project, "--launches", "3")
    assert done.returncode == 1
    assert sum(call.startswith("case case2") for call in calls_of(project)) == 1
    assert sum(call.startswith("case case1") for call in calls_of(project)) == 3


@pytest.mark.parametrize("value", ["0", "two", "-1", "1001", "1.5", ""])
def test_a_number_of_launches_that_cannot_be_is_told_in_a_line(tmp_path: Path, value: str) -> None:
    project = make_checkout(tmp_path / "checkout", RECORDING_MAIN)
    done = study(project, "--launches", value)
    assert done.returncode == 2 and calls_of(project) == []
    assert done.stderr.splitlines()[-1] == f"error: --launches {value}: a whole number from 1 to 1000"


@pytest.mark.timeout(600)
def test_a_case_in_real_processes_is_measured_in_two_launches(tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--prompt-lengths", "3,4", "--ttft-iterations", "2", "--p99-iterations", "4"]
    flags += ["--output-dir", str(tmp_path)]
    env = environ(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    for number in ("1", "2"):
        command = [sys.executable, str(ROOT / "case1_baseline.py"), *flags, "--launch", number]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    tables = [sys.executable, str(ROOT / "generate_final_tables.py"), "--output-dir", str(tmp_path)]
    told = subprocess.run(tables, env=env, capture_output=True, text=True, timeout=280)
    assert "by 95 % intervals over up to 2 launches of each" in " ".join(told.stdout.split())
    with (tmp_path / "final_intervals.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["figure"] == "warm_ttft" and row["prompt_length"]]
    assert len(found) == 2
    for row in found:
        assert float(row["low_ms"]) < float(row["value_ms"]) < float(row["high_ms"]) and row["launches"] == "2"
    assert "### Warm TTFT, mean, ± %" in (tmp_path / "final_report.md").read_text()
    assert (tmp_path / "final_report.html").stat().st_size < 6_000_000
