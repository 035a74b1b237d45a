"""The entry points in this process, over sources and engines that are none."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridgraph.bench.environment import read_environment, run_id_of
from hybridgraph.bench.store import ResultFiles, set_all_aside
from hybridgraph.cases import CASE1, CASE4
from hybridgraph.cli import commands as main
from hybridgraph.cli.study import record_reason, run_study
from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.report.load import load_results


class DyingSource:
    """Answers at once, until its process is gone."""

    info = SourceInfo(
        model="none", dtype="float32", load_format="dummy", device="nothing", vocab_size=100, max_seq_len=512
    )

    def __init__(self, answers: int) -> None:
        self._left = answers

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        if not self._left:
            raise UserError("the generator is gone")
        self._left -= 1
        for token in range(request.max_new_tokens):
            emit(token)
        return Report(graph_path="eager")

    def stats(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


class CrashingSource(DyingSource):
    """Ends its process at the fourth request."""

    def __init__(self) -> None:
        super().__init__(3)

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        if not self._left:
            raise SystemExit(139)
        return super().stream(request, emit)


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``attempt(opened)``: Case 1 over what that returns, six requests in all."""

    def run(opened: Callable[[], DyingSource], *more: str) -> int:
        monkeypatch.setattr(main, "_opened", lambda config, case: opened())
        flags = ("--prompt-lengths", "3,7", "--ttft-iterations", "2", "--p99-iterations", "1")
        return main.run_case(CASE1, [*flags, *more, "--output-dir", str(tmp_path)])

    return run


def refused() -> DyingSource:
    raise UserError("no such model")


def remarks(directory: Path) -> list[str]:
    return [remark for remark in load_results(directory).remarks if "ended early" in remark]


def test_whose_end_a_reason_is(attempt: Callable[..., int], tmp_path: Path) -> None:
    assert attempt(refused) == 2
    recorded = read_environment(tmp_path / "environment.json")
    assert (recorded["not_run"], recorded["ended_early"]) == ({CASE1.name: "no such model"}, {CASE1.name: ""})
    assert attempt(lambda: DyingSource(3)) == 2
    assert remarks(tmp_path) == ["Baseline: the run ended early: the generator is gone"]
    assert attempt(lambda: DyingSource(6)) == 0
    recorded = read_environment(tmp_path / "environment.json")
    assert recorded["not_run"] == recorded["ended_early"] == {}
    assert remarks(tmp_path) == []


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("answers", [3, 6], ids=["a run that ended early", "a finished run"])
def test_an_attempt_that_begins_no_run_leaves_every_file_as_it_was(
    attempt: Callable[..., int], tmp_path: Path, answers: int
) -> None:
    def without_torch() -> DyingSource:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    attempt(lambda: DyingSource(answers))
    before = contents(tmp_path)
    for failing in (refused, without_torch):
        assert attempt(failing) == 2
        assert contents(tmp_path) == before
    record_reason(tmp_path, CASE1, "not asked for")
    assert contents(tmp_path) == before


def test_an_attempt_at_one_case_leaves_what_is_told_of_others(attempt: Callable[..., int], tmp_path: Path) -> None:
    attempt(lambda: DyingSource(3))
    before = read_environment(tmp_path / "environment.json")
    assert main.run_client(CASE4, ["--socket", str(tmp_path / "none"), "--output-dir", str(tmp_path)]) == 2
    after = read_environment(tmp_path / "environment.json")
    assert CASE4.name in after["not_run"], "a case without rows says why"
    for section, entries in before.items():
        assert {name: after[section][name] for name in entries} == entries


def test_a_resumed_run_may_end_early_again(attempt: Callable[..., int], tmp_path: Path) -> None:
    told = ["Baseline: the run ended early: the generator is gone"]
    assert attempt(lambda: DyingSource(3)) == 2
    assert attempt(refused, "--resume") == 2
    assert remarks(tmp_path) == told, "why it could not go on is not why it ended"
    assert attempt(lambda: DyingSource(3), "--resume") == 2
    assert remarks(tmp_path) == told
    assert attempt(lambda: DyingSource(9), "--resume") == 0
    assert attempt(refused, "--resume") == 2
    assert remarks(tmp_path) == [], "it was measured to its end"


@pytest.mark.parametrize("text", ["{", "[1]", '{"cases": []}', '{"cases": {"case1_baseline": 3}}'])
def test_an_environment_that_is_none_is_told_before_anything_is_touched(
    attempt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert attempt(lambda: DyingSource(6)) == 0
    (tmp_path / "environment.json").write_text(text)
    assert attempt(lambda: pytest.fail("it is opened")) == 2
    assert "environment.json is no" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "previous").exists()


def test_a_second_run_of_a_case_is_refused_before_it_loads_anything(
    attempt: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def meanwhile() -> DyingSource:
        assert attempt(lambda: pytest.fail("it is opened")) == 2
        assert capsys.readouterr().err.count("another run of case1_baseline is writing to") == 1
        with pytest.raises(UserError, match="another run of case1_baseline is writing to"):
            set_all_aside(tmp_path)
        assert run_study(["--output-dir", str(tmp_path)]) == 2
        assert "a case is being measured into" in capsys.readouterr().err
        with ResultFiles(tmp_path, CASE4.name).held():
            return DyingSource(6)

    assert attempt(meanwhile) == 0
    recorded = read_environment(tmp_path / "environment.json")
    assert recorded["not_run"] == recorded["ended_early"] == {}


def test_the_complete_run_tells_the_end_of_the_run_that_lies_there(attempt: Callable[..., int], tmp_path: Path) -> None:
    record_reason(tmp_path, CASE1, "not asked for")
    assert read_environment(tmp_path / "environment.json")["not_run"] == {CASE1.name: "not asked for"}
    with pytest.raises(SystemExit):  # the process ends without a word, as after a crash
        attempt(CrashingSource)
    record_reason(tmp_path, CASE1, "failed with exit code 139")
    assert remarks(tmp_path) == ["Baseline: the run ended early: failed with exit code 139"]
    attempt(lambda: DyingSource(6))
    record_reason(tmp_path, CASE1, "not asked for")
    assert remarks(tmp_path) == [], "it was measured to its end"


def test_an_environment_from_before_ends_were_recorded_is_read(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({"cases": {CASE1.name: {"identity": {"run_id": "r1"}}}, "not_run": {"x": "why"}}))
    assert read_environment(path)["not_run"] == {"x": "why"}
    assert (run_id_of(tmp_path, CASE1.name), run_id_of(tmp_path, "x")) == ("r1", "")


def test_a_generator_with_its_standard_output_closed_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def serve_nobody(
        path: Path,
        open_engine: Callable[..., object],
        *,
        on_listening: Callable[[Path], None],
        on_ready: Callable[[], None],
    ) -> int:
        on_listening(path)
        open_engine(lambda stage, done, total: None)
        on_ready()
        return 0

    monkeypatch.setattr("hybridgraph.serving.server.serve", serve_nobody)
    monkeypatch.setattr("hybridgraph.sources.build.open_engine", lambda config, case, progress: opened.append(case))
    monkeypatch.setattr(sys, "stdout", None)
    assert main.serve(CASE4, ["--socket", str(tmp_path / "socket")]) == 0
    assert len(opened) == 1
