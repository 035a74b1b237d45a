"""The published results, as committed: rows are those of their samples, tables those of their rows, texts theirs."""

import csv
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hybridgraph.bench.environment import known_of_run
from hybridgraph.bench.samples import PHASES, Phase, RunIdentity, Sample
from hybridgraph.bench.store import ResultFiles, ResultWriter
from hybridgraph.cases import (
    CASE1,
    CASE4,
    CASE4_FUSED,
    CASE5,
    CASES,
    HF_COMPILED,
    HF_STATIC,
    SGLANG,
    SGLANG_FULL,
    VLLM,
    VLLM_FULL,
    Case,
)
from hybridgraph.contract import SourceInfo
from hybridgraph.report import final
from hybridgraph.roofline import ModelShape, Rates

ROOT = Path(__file__).resolve().parent.parent
FUSED = "case4_jit_cuda_fused"
MEASURED = [case for case in CASES if case != CASE5]
WARM: tuple[Phase, str] = ("ttft", "warm_mean_ms")
DEVICE: tuple[Phase, str] = ("ttft", "device_ms")
P99: tuple[Phase, str] = ("p99", "p99_ms")
ITL: tuple[Phase, str] = ("decode", "itl_mean_ms")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of what comes with the project."""
    shutil.copytree(ROOT / "output" / "published", tmp_path, dirs_exist_ok=True)
    return tmp_path


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def runs(published: Path) -> list[tuple[ResultFiles, RunIdentity, list[Sample], dict[str, Any]]]:
    """Every run: its files, who it was, its samples, and what ``environment.json`` tells of its source."""
    found = []
    for path in sorted(published.rglob("*_samples.jsonl.gz")):
        files = ResultFiles(path.parent, path.name.removesuffix("_samples.jsonl.gz"))
        read = files.read_samples()
        assert read is not None
        found.append((files, *read, known_of_run(files.directory, files.name, read[0].run_id)["source"]))
    assert found
    return found


def results_in(published: Path) -> dict[Path, list[dict[str, str]]]:
    return {path: rows(path) for phase in PHASES for path in published.rglob(f"*_{phase}.csv")}


def test_every_row_is_that_of_its_samples(published: Path) -> None:
    before = results_in(published)
    for path in before:
        path.unlink()
    for files, identity, samples, source in runs(published):
        rates = source["rates"] and Rates(**source["rates"])  # of an engine that is not ours none were measured
        parts = {"shape": ModelShape(**source["shape"]), "rates": rates}
        ResultWriter(files, identity, SourceInfo(**source | parts), samples).write_summaries()
    after = results_in(published)
    assert after.keys() == before.keys()
    for path, shown in before.items():
        assert shown == [{column: row[column] for column in shown[0]} for row in after[path]], path


def test_every_run_is_of_committed_code_on_a_device_that_is_named(published: Path) -> None:
    if git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true":
        pytest.skip("the checkout is shallow")
    for files, identity, _, source in runs(published):
        assert git("merge-base", "--is-ancestor", identity.commit, "HEAD").returncode == 0, files
        assert identity.device == source["device"] == source["environment"]["gpu"]["name"], files


def test_every_report_is_that_of_its_rows(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final, "plot_table", lambda *_: None)
    monkeypatch.setattr(final, "plot_growth", lambda *_: None)
    reports = sorted(published.rglob(final.REPORT))
    assert published / "h200" / final.REPORT in reports
    for report in reports:
        texts = [report, *report.parent.glob("final_*.csv")]
        before = {path: path.read_text() for path in texts}
        final.write_final_tables(report.parent, as_json=False)
        assert {path: path.read_text() for path in texts} == before


def average(directory: Path, case: str, phase: Phase, column: str) -> float:
    return fmean(float(row[column]) for row in rows(directory / f"{case}_{phase}.csv"))


def figures(directory: Path, case: str, *columns: tuple[Phase, str]) -> list[str]:
    """Averages as the texts show them."""
    return [f"{average(directory, case, *column):.2f}" for column in columns]


def grid_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def test_the_texts_show_the_tables_of_the_report(published: Path) -> None:
    report = (published / "h200" / final.REPORT).read_text()
    readme, results = (ROOT / "README.md").read_text(), (ROOT / "docs" / "results.md").read_text()
    shown = {
        "Warm TTFT, mean, ms": readme,
        "P99 of TTFT, ms": readme,
        "ITL, mean, ms": results,
        "What each part contributes": results,
    }
    for heading, text in shown.items():
        table = report.split(f"## {heading}\n\n")[1].split("\n\n")[0]
        assert table.startswith("| ") and table in text, heading


@pytest.mark.parametrize("name", ["repeated", "h100", "smollm2"])
def test_the_texts_show_the_averages_of_other_runs(published: Path, name: str) -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    for case in MEASURED:
        assert grid_row(case.title, *figures(published / name, case.name, WARM, DEVICE, P99, ITL)) in text


HF = (CASE1, HF_STATIC, HF_COMPILED, CASE4_FUSED)
OF_OTHERS = (VLLM, VLLM_FULL, SGLANG, SGLANG_FULL)


@pytest.mark.parametrize(
    ("name", "text", "cases", "with_pauses"),
    [
        ("peers", "README.md", (*HF, *OF_OTHERS, CASE4), (VLLM_FULL, SGLANG_FULL, CASE4_FUSED)),
        ("h100/peers", "docs/results.md", HF, ()),
    ],
)
def test_the_texts_show_the_averages_of_the_peers(
    published: Path, name: str, text: str, cases: Sequence[Case], with_pauses: Sequence[Case]
) -> None:
    directory, shown = published / name, (ROOT / text).read_text().replace("**", "")
    for case in cases:
        cells = figures(directory, case.name, WARM, P99, ITL)
        if case in with_pauses:
            cells += figures(directory / "apart_5ms", case.name, WARM, P99)
        elif with_pauses:
            cells += "", ""
        assert grid_row(case.title, *cells) in shown


@pytest.mark.parametrize(
    ("name", "text", "pauses"),
    [
        ("h200", "README.md", {0: ".", 5: "apart_5ms", 20: "apart_20ms", 100: "apart_100ms"}),
        ("repeated", "docs/results.md", {0: ".", 5: "apart_5ms"}),
    ],
)
def test_the_texts_show_what_pauses_change(published: Path, name: str, text: str, pauses: dict[int, str]) -> None:
    shown = (ROOT / text).read_text()
    for pause, subdirectory in pauses.items():
        directory = published / name / subdirectory
        warm, device, floor = (average(directory, FUSED, "ttft", c) for c in ("warm_mean_ms", "device_ms", "floor_ms"))
        tail = max(float(row["p99_ms"]) / float(row["mean_ms"]) for row in rows(directory / f"{FUSED}_p99.csv"))
        row = grid_row(pause, f"{warm:.2f}", f"{device:.2f}", f"{warm / floor:.3f} ×", f"{tail:.3f}")
        assert row[:-1] in shown


def test_the_texts_show_the_lengths_that_no_graph_was_made_for(published: Path) -> None:
    directory, text = published / "h200" / "new_lengths", (ROOT / "docs" / "results.md").read_text()
    tables = [rows(directory / f"{case}_ttft.csv") for case in ("case2_async_cuda", "case4_jit_cuda", FUSED)]
    tails = rows(directory / f"{FUSED}_p99.csv")
    assert len(tails) == 9
    for number, tail in enumerate(tails):
        cells = [tail["prompt_length"]]
        for table in tables:
            first = table[number]["first_seen_ms"]
            cells += [f"{float(first):.2f}" if first else "(cold)", f"{float(table[number]['warm_mean_ms']):.2f}"]
        assert grid_row(*cells, f"{float(tail['p99_ms']):.2f}") in text
