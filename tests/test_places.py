"""What is published stays as it is, whatever a user asks for."""

import subprocess
import sys
from pathlib import Path

import pytest

from hybridgraph.bench.environment import record_not_run
from hybridgraph.bench.store import ResultFiles, set_all_aside
from hybridgraph.cases import CASE1
from hybridgraph.errors import UserError
from hybridgraph.places import PUBLISHED, SHOWN, find_results, is_published
from hybridgraph.settings import Program
from hybridgraph.system.command_line import parse_args
from hybridgraph.system.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Another checkout, as far as its results are concerned."""
    for name in ("hybridgraph", "output/published/mine", "output/mine"):
        (tmp_path / "checkout" / name).mkdir(parents=True)
    return tmp_path / "checkout"


def test_is_published_tells_both_places_apart(checkout: Path, tmp_path: Path) -> None:
    published = checkout / "output" / "published"
    (tmp_path / "link").symlink_to(published / "mine")
    inside = (published, published / "new", published / "mine" / "x.csv", tmp_path / "link", SHOWN, PUBLISHED)
    assert all(map(is_published, inside))
    (tmp_path / "output" / "published").mkdir(parents=True)  # a user's own, in no checkout
    outside = (checkout / "output", checkout / "output" / "mine", tmp_path / "output" / "published", Path("published"))
    assert not any(map(is_published, outside))


def test_is_published_answers_for_a_path_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not is_published(tmp_path / "a")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert not is_published(Path("output"))


def test_whatever_writes_is_refused_among_published_results(checkout: Path) -> None:
    directory = checkout / "output" / "published" / "mine"
    (directory / "environment.json").write_text("{}")
    writers = (
        lambda: write_atomically(directory / "x", "text"),
        lambda: record_not_run(directory, CASE1.name, "reason"),
        lambda: set_all_aside(directory),
        lambda: ResultFiles(directory, CASE1.name).held().__enter__(),
        lambda: parse_args(["--output-dir", str(directory)], Program.CASE, [CASE1]),
        lambda: parse_args(["--output-dir", str(directory / "new")], Program.CASE, [CASE1]),
    )
    for write in writers:
        with pytest.raises(UserError, match="among the published results"):
            write()
    assert [path.name for path in directory.iterdir()] == ["environment.json"]


@pytest.mark.parametrize(
    "command",
    [
        "case1_baseline.py",
        "case3_jit_only.py --resume",
        "case5_tensorrt_llm.py --engine hf-static",
        "case4_jit_cuda_client.py --socket nowhere",
        "-m hybridgraph study",
        "-m hybridgraph pair case2",
    ],
)
def test_a_command_that_would_change_a_published_run_is_one_line(command: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in PUBLISHED.rglob("*")}
    run = subprocess.run(
        [sys.executable, *command.split(), "--output-dir", "output/published/h200"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), run.stderr
    assert run.stderr.startswith("error: output/published/h200 is among the published results")
    assert {path: path.stat().st_mtime_ns for path in PUBLISHED.rglob("*")} == before


def test_find_results_means_a_published_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_results("published/h200") == SHOWN
    assert find_results("published/h200/apart_5ms") == SHOWN / "apart_5ms"
    assert find_results("published/none") == Path("published/none")
    assert find_results("mine") == Path("mine")
    (tmp_path / "published" / "h200").mkdir(parents=True)
    assert find_results("published/h200") == Path("published/h200"), "a path that is there means itself"
