"""A complete run ends with its answer in ten lines that fit a terminal."""

import shutil
from pathlib import Path

import pytest

from hybridgraph.places import SHOWN
from hybridgraph.report.final import write_final_tables
from hybridgraph.report.grid import WIDTH


def test_ending_of_the_published_run_is_ten_lines_with_averages_claims_and_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in SHOWN.glob("case*"):
        shutil.copy(path, tmp_path)
    shutil.copy(SHOWN / "environment.json", tmp_path)
    write_final_tables(tmp_path, as_json=False, brief=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(len(line) <= WIDTH or line.endswith((".md", ".html")) for line in lines)  # a path is as long as it is
    assert "6.39" in lines[5] and "5.51 ×" in lines[5]
    assert "TensorRT-LLM" in lines[6]
    assert "8 of 11 hold with JIT+CUDA fused" in lines[7]
    assert [Path(line.partition(": ")[2]).is_file() for line in lines[8:]] == [True, True]
