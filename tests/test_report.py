"""Tables from CSVs: exact schemas in, winners and averages out, and one line for every bad cell."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hybridgraph.bench.samples import DECODE_COLUMNS, P99_COLUMNS, TTFT_COLUMNS
from hybridgraph.cases import (
    CASE1,
    CASE2,
    CASE3,
    CASE4,
    CASE4_FUSED,
    CASE5,
    CASES,
    HF_STATIC,
    PAPER_PROMPT_LENGTHS,
    PEERS,
    Case,
)
from hybridgraph.errors import UserError
from hybridgraph.report import plots
from hybridgraph.report.cells import ADDED_LATER
from hybridgraph.report.claims import SPEEDUP_CLAIMS, study_speedup, study_wins
from hybridgraph.report.evidence import Evidence
from hybridgraph.report.grid import WIDTH, markdown, plain
from hybridgraph.report.lines import floor_of
from hybridgraph.report.load import load_results
from hybridgraph.report.main import generate_final_tables
from hybridgraph.report.study import STUDY, figures, printed
from hybridgraph.report.tables import P99, TTFT, build_table

ROOT = Path(__file__).resolve().parent.parent
IDENTITY = {
    "graph_backend": "cuda", "model": "m", "dtype": "float16", "load_format": "dummy", "device": "GPU", "run_id": "r1",
    "ops": "native", "forward": "hf", "sampling": "T=0.7", "seed": "0", "protocol": "paper",
    "started": "2026-01-01T00:00:00+00:00", "commit": "abc",
}  # fmt: skip


def write(directory: Path, case: Case, times: dict[int, float], **cells: str) -> None:
    """The three files of a case whose every time at a length is ``times[length]``; ``cells``: in other columns."""
    for kind, columns in (("ttft", TTFT_COLUMNS), ("p99", P99_COLUMNS), ("decode", DECODE_COLUMNS)):
        with (directory / f"{case.name}_{kind}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            for length, ms in times.items():
                row: dict[str, object] = dict.fromkeys(columns, "") | IDENTITY | cells
                row |= {"prompt_length": length, "samples": cells.get("samples", 5)}
                row |= {c: ms for c in ("mean_ms", "p99_ms", "itl_mean_ms", "warm_mean_ms") if c in columns}
                table.writerow({c: row[c] for c in columns})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def squeezed(path: Path) -> str:
    """A text whose tables are not aligned: runs of blanks are one."""
    return re.sub(" +", " ", path.read_text())


def test_tables_winner_ties_and_average(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0, 50: 20.0, 100: 20.0})
    write(tmp_path, CASE4, {10: 5.0, 50: 20.0})
    write(tmp_path, CASE3, {10: 30.0, 50: 40.0, 100: 10.0})
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    table = read(tmp_path / "final_ttft_table.csv")
    assert list(table[0]) == [
        "prompt_length", "baseline_ms", "cuda_graph_ms", "jit_only_ms", "jit_cuda_ms", "jit_cuda_fused_ms",
        "tensorrt_ms", "winner",
    ]  # fmt: skip
    assert [row["winner"] for row in table] == ["JIT+CUDA", "Baseline = JIT+CUDA", "JIT only"]
    assert table[2]["jit_cuda_ms"] == table[0]["cuda_graph_ms"] == ""
    assert "baseline_p99_ms" in read(tmp_path / "final_p99_table.csv")[0]
    assert read(tmp_path / "final_warm_ttft_table.csv")[1]["jit_only_warm_ms"] == "40.0000"
    report = squeezed(tmp_path / "final_report.md")
    assert "| 50 | **20.00** | | 40.00 | **20.00** | | |\n" in report, "a tie"
    assert "| mean | 20.00 | | 35.00 | **12.50** | | |\n" in report
    assert "| gain | 1.00 × | | 0.57 × | 1.60 × | | |\n" in report
    assert "CUDA Graph: empty, not run (run_case2_benchmark.sh)" in report
    for name in ("final_warm_ttft.png", "final_p99.png", "final_decode.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_averages_are_a_table_of_numbers_to_pandas(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0, 50: 30.0, 100: 90.0})
    write(tmp_path, CASE4, {10: 5.0, 50: 20.0})
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    averages = pd.read_csv(tmp_path / "final_averages.csv", index_col="figure")
    assert list(averages.index) == ["warm_ttft", "ttft", "p99", "decode"]
    assert set(averages["lengths"]) == {2}, "averages are over the rows that all cases share"
    assert averages.loc["p99", ["baseline_ms", "jit_cuda_ms", "winner"]].to_list() == [25.0, 12.5, "JIT+CUDA"]
    for kind in ("warm_ttft", "ttft", "p99", "decode"):
        table = pd.read_csv(tmp_path / f"final_{kind}_table.csv")
        assert table["prompt_length"].dtype.kind == "i"
        assert table.filter(like="_ms").dtypes.map(lambda dtype: dtype.kind).eq("f").all()


def test_every_table_fits_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, case in enumerate((*CASES, *PEERS)):
        write(tmp_path, case, at_all_lengths(123.0 + number), device_ms="100", cold_ms="2269.95", floor_ms="3")
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    tables = [line for line in (tmp_path / "final_report.md").read_text().splitlines() if line.startswith("|")]
    assert max(map(len, [*tables, *capsys.readouterr().out.splitlines()])) <= WIDTH
    assert sum("SGLang full" in line for line in tables) == 4, "peers are a part of their own of each table"


def test_markdown_parts_a_table_that_is_too_wide() -> None:
    heading = ["tokens", *(f"case {number}" for number in range(20))]
    rows = [[str(length), *["1234.56"] * 20] for length in (10, 400)]
    parts = markdown(heading, rows, together=2).split("\n\n")
    assert all(part.splitlines()[0].startswith("| tokens |") for part in parts)
    assert all(len(line) <= WIDTH for part in parts for line in part.splitlines())
    shown = [cell.strip() for part in parts for cell in part.splitlines()[0].split("|")[2:-1]]
    assert shown == heading[1:], "nothing is lost"
    assert all(len(part.splitlines()[0].split("|")) % 2 for part in parts), "pairs stay together"
    assert max(map(len, plain(heading, rows).splitlines())) <= WIDTH


def test_what_the_gpu_spent_is_told_by_time_and_by_request(tmp_path: Path) -> None:
    write(tmp_path, CASE4, {10: 5.0, 400: 10.0})  # five samples a row
    counted = {"wall_ms": 2000.0, "energy_j": 1000.0, "power_capped_ms": 500.0, "sm_clock_mhz": 1500}
    refused = counted | {"energy_j": "not told: Not Supported"}
    spent = {str(n): row | {"thermally_capped_ms": 0.0} for n, row in ((400, refused), (10, counted))}
    environment = {"cases": {CASE4.name: {"gpu_spent": {"p99": spent, "ttft": {}}}}, "not_run": {}}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    for heading, first, second in (
        ("Energy of a request, J", "  200.00", "       –"),
        ("Power, W", "  500.00", "       –"),
        ("Time capped by power, %", "   25.00", "   25.00"),
        ("SM clock after the row, MHz", "    1500", "    1500"),
    ):
        assert f"### {heading}\n" in report
        table = report.split(f"### {heading}\n")[1]
        assert f"|     10 | {first} |\n|    400 | {second} |\n" in table
    assert "- A dash: not told: Not Supported\n" in report
    assert "- Time capped by temperature, %: none in any row.\n" in report
    assert "over rows of some tenths of a second to a few seconds" in report
    assert "The first row of a case may still count the phase before it." in report


def test_what_graphs_cost_is_told_with_what_it_was_counted_over(tmp_path: Path) -> None:
    write(tmp_path, CASE4, {10: 5.0})
    costs = {"seconds_a_graph": 0.5, "driver_mib_a_graph": 6.0, "saved_ms_a_request": 5.0, "requests_to_pay_back": 100}
    (tmp_path / "environment.json").write_text(
        json.dumps({"cases": {CASE4.name: {"stats": {"economics": costs, "counters": {"exact": 9, "padded": 0}}}}})
    )
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    assert "| JIT+CUDA |    0.50 |      6.00 |      5.00 |        100 |          |\n" in report
    assert "- JIT+CUDA: exact 9\n" in report
    assert "over the prefill graphs captured before serving" in report


@pytest.mark.parametrize(
    "case",
    [{"stats": {"economics": [1]}}, {"stats": {"economics": {"a": 1}, "server": 3}}, {"gpu_spent": {"p99": "x"}},
     {"gpu_spent": {"p99": {"10": [2]}}}, {"gpu_spent": {"p99": {"10": {"wall_ms": "x"}}}}],
    ids=str,
)  # fmt: skip
def test_junk_in_what_is_told_of_a_case_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: dict[str, object]
) -> None:
    write(tmp_path, CASE4, {10: 5.0})
    (tmp_path / "environment.json").write_text(json.dumps({"cases": {CASE4.name: case}}))
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("error: environment.json: ")


def test_rows_of_another_machine_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, CASE1, {10: 20.0}, device="other GPU", run_id="old")
    write(tmp_path, CASE4, {10: 5.0}, started="2026-02-02T00:00:00+00:00")
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert read(tmp_path / "final_ttft_table.csv")[0]["baseline_ms"] == ""
    told = capsys.readouterr().out
    assert "case1_baseline_ttft.csv (run old) is left out: device other GPU instead of GPU" in told
    assert told.split("left out")[0] and "left out" in (tmp_path / "final_report.md").read_text()


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";"),
        lambda text: "\ufeff" + text.replace(",", ";").replace("\n", "\r\n"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: "".join(f"{line},mine,\n" for line in text.replace("mean_ms", "mean_ms", 1).splitlines()),
    ],
    ids=["mark", "semicolons", "semicolons and mark", "tabs", "blank lines", "columns of a user's"],
)
def test_a_file_that_a_spreadsheet_saved_is_read(tmp_path: Path, saved: Callable[[str], str]) -> None:
    write(tmp_path, CASE1, {10: 20.0, 50: 21.5})
    expected = load_results(tmp_path)
    for path in tmp_path.glob("*.csv"):
        path.write_text(saved(path.read_text()), newline="")
    found = load_results(tmp_path)
    assert found.identity == expected.identity
    for kind, tables in expected.tables.items():
        pd.testing.assert_frame_equal(found.tables[kind][CASE1.name], tables[CASE1.name])


def test_the_newest_run_is_so_by_its_time_not_by_its_text(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0}, started="2026-01-02T00:30:00+02:00", device="older")
    write(tmp_path, CASE4, {10: 5.0}, started="2026-01-01T23:00:00+00:00", device="newer")
    assert load_results(tmp_path).identity["device"] == "newer"


def test_a_case_is_not_left_out_for_another_ones_file(tmp_path: Path) -> None:
    write(tmp_path, CASE4_FUSED, {10: 5.0}, dtype="bfloat16")
    write(tmp_path, CASE1, {10: 20.0}, started="2026-02-02T00:00:00+00:00")
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    assert "JIT+CUDA: empty, not run (run_case4_benchmark.sh)" in report
    assert "JIT+CUDA fused: empty, left out, as told below" in report


def test_what_a_reader_must_know_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, CASE1, {10: 20.0}, commit="aaaa")
    write(tmp_path, CASE4, {10: 5.0, 50: 5.0}, commit="bbbb", ops="inductor", overflowed="2")
    other = {"configuration": {"max_graphs": 7, "async_capture": False, "share_buffers": True}, "served_before": 12}
    environment = {"not_run": {CASE4.name: "out of memory"}, "cases": {CASE4.name: other}}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    (tmp_path / f"{CASE4.name}_decode.csv").unlink()
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for remark in (
        "The rows are of several commits: Baseline aaaa, JIT+CUDA bbbb",
        "JIT+CUDA: measured with --ops inductor, its own are torchscript",
        "JIT+CUDA: measured with --max-graphs 7, --no-async-capture, --share-buffers",
        "JIT+CUDA: its generator had answered 12 requests before: no request is cold",
        "JIT+CUDA: 4 answers ended in logits that are not finite: they take less power than numbers, and less time",
        "JIT+CUDA: no rows of decode",
        "JIT+CUDA: the rows are from before its last attempt, which ended early: out of memory",
    ):
        assert remark in told and f"- {remark}" in squeezed(tmp_path / "final_report.md")


@pytest.mark.parametrize(
    ("ended_early", "sentence"),
    [
        ({CASE1.name: "r1"}, "Baseline: the run ended early: out of memory"),
        ({CASE1.name: "r0"}, "Baseline: the rows are from before its last attempt, which ended early: out of memory"),
        ({CASE1.name: ""}, "Baseline: the rows are from before its last attempt, which ended early: out of memory"),
        ({CASE1.name: ["r1"]}, "Baseline: the rows are from before its last attempt, which ended early: out of memory"),
    ],
    ids=str,
)
def test_which_run_it_was_that_ended_early(tmp_path: Path, ended_early: dict[str, object], sentence: str) -> None:
    write(tmp_path, CASE1, {10: 20.0})
    environment = {"not_run": {CASE1.name: "out of memory"}, "ended_early": ended_early}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    assert load_results(tmp_path).remarks == [sentence]


def test_a_text_and_differing_positions_are_told(tmp_path: Path) -> None:
    records = {}
    for case, settings in ((CASE1, {"prompt_file": "texts/a b.txt"}), (CASE4, {"max_seq_len": 1024})):
        write(tmp_path, case, {10: 20.0}, ops=case.ops or "")
        records[case.name] = {"configuration": {"max_seq_len": 512} | settings}
    (tmp_path / "environment.json").write_text(json.dumps({"cases": records}))
    assert load_results(tmp_path).remarks == [
        "Baseline: measured with --prompt-file 'texts/a b.txt', --max-seq-len 512",
        "JIT+CUDA: measured with --max-seq-len 1024",
    ]


def test_settings_that_all_cases_share_are_told_once(tmp_path: Path) -> None:
    for case in (CASE1, CASE4):
        write(tmp_path, case, {10: 20.0}, ops=case.ops or "")
    same = {"configuration": {"decode_tokens": 16, "seed": 0, "precapture": None}}
    (tmp_path / "environment.json").write_text(json.dumps({"cases": {CASE1.name: same, CASE4.name: same}}))
    assert load_results(tmp_path).remarks == ["All cases: measured with --decode-tokens 16"]


@pytest.mark.parametrize("kind", ["ttft", "p99", "decode"])
def test_a_commit_of_any_file_counts(tmp_path: Path, kind: str) -> None:
    for case in (CASE1, CASE4):
        write(tmp_path, case, {10: 20.0, 20: 30.0}, ops=case.ops or "")
    path = tmp_path / f"{CASE4.name}_{kind}.csv"
    path.write_text(path.read_text().replace(",abc", ",bbbb"))
    assert load_results(tmp_path).remarks == ["The rows are of several commits: Baseline abc, JIT+CUDA abc and bbbb"]


def test_what_no_row_shows_any_longer_is_gone(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0})
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    (tmp_path / "final_mine.png").touch()
    assert (tmp_path / "final_decode.png").exists()
    (tmp_path / f"{CASE1.name}_decode.csv").unlink()
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert not (tmp_path / "final_decode.png").exists()
    assert not (tmp_path / "final_decode_table.csv").exists()
    assert (tmp_path / "final_mine.png").exists()


def test_averages_over_some_rows_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, CASE1, {10: 20.0, 50: 30.0})
    write(tmp_path, CASE4, {10: 5.0, 50: 6.0})
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    rule = "The mean is over the lengths that every measured case has"
    assert rule not in capsys.readouterr().out
    write(tmp_path, CASE4, {10: 5.0})
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert f"{rule}: 10." in capsys.readouterr().out
    assert f"{rule}: 10." in (tmp_path / "final_report.md").read_text()


@pytest.mark.parametrize("other", [{"device": "other GPU"}, {"commit": "def"}], ids=str)
def test_a_run_over_lengths_is_shown_beside_its_own_study_only(tmp_path: Path, other: dict[str, str]) -> None:
    (tmp_path / "length_sweep").mkdir()
    write(tmp_path / "length_sweep", CASE4_FUSED, {1: 4.0, 2048: 40.0}, protocol="6+0 requests", device_ms="3")
    write(tmp_path, CASE4, {10: 5.0})
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert (tmp_path / "final_growth.png").exists()
    (tmp_path / "final_growth.png").unlink()
    write(tmp_path, CASE4, {10: 5.0}, **other)
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert not (tmp_path / "final_growth.png").exists()
    assert "sweep" not in (tmp_path / "final_report.md").read_text(), "it came with the checkout, say"


def test_a_case_with_one_table_only_was_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, CASE1, {10: 20.0})
    (tmp_path / f"{CASE1.name}_ttft.csv").unlink()
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert "Baseline: empty" not in capsys.readouterr().out


def test_reasons_and_peers(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0})
    write(tmp_path, HF_STATIC, {10: 10.0})
    (tmp_path / "environment.json").write_text(json.dumps({"not_run": {CASE5.name: "no TensorRT-LLM here"}}))
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert float(read(tmp_path / "final_ttft_table.csv")[0]["hf_static_ms"]) == 10.0
    assert "TensorRT-LLM: empty, no TensorRT-LLM here" in (tmp_path / "final_report.md").read_text()


def test_emulated_graphs_are_called_emulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, CASE4, {10: 20.0}, graph_backend="emulated")
    assert generate_final_tables(["--output-dir", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr().out
    assert "EMULATED" in told
    assert read(tmp_path / "final_ttft_table.csv")[0]["graphs"] == "emulated"
    assert json.loads(told.splitlines()[-1])["emulated"] is True
    assert "emulated" in (tmp_path / "final_report.md").read_text()
    assert json.loads(told.splitlines()[-1])["tables"]["ttft"]["rows"][0]["jit_cuda_ms"] == 20.0
    report = (tmp_path / "final_report.md").read_text()
    assert "| JIT+CUDA~ |" in report
    assert "~ Graphs are emulated here: a replay calls the captured function again." in report


def test_where_graphs_are_emulated_nobody_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, CASE1, {10: 20.0}, graph_backend="none")
    write(tmp_path, CASE3, {10: 30.0}, graph_backend="none")
    write(tmp_path, CASE4, {10: 40.0}, graph_backend="emulated")
    assert generate_final_tables(["--output-dir", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr().out
    assert not any(row["winner"] for row in read(tmp_path / "final_ttft_table.csv"))
    assert not any(row["winner"] for row in read(tmp_path / "final_averages.csv"))
    report = (tmp_path / "final_report.md").read_text()
    assert "**20.00**" not in report and "20.00*" not in told and "| gain" not in report
    (tmp_path / f"{CASE4.name}_ttft.csv").unlink()
    (tmp_path / f"{CASE4.name}_p99.csv").unlink()
    (tmp_path / f"{CASE4.name}_decode.csv").unlink()
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert "**20.00**" in (tmp_path / "final_report.md").read_text(), "real cases compete on a CPU, too"


def test_an_ablation_stands_beside_the_cases(tmp_path: Path) -> None:
    def measure(name: str, case: Case, times: dict[int, float], settings: dict[str, object], **identity: str) -> None:
        directory = tmp_path / "ablation" / name
        directory.mkdir(parents=True)
        write(directory, case, times, **identity)
        record = {"cases": {case.name: {"configuration": settings}}}
        (directory / "environment.json").write_text(json.dumps(record))

    write(tmp_path, CASE4, {10: 5.0, 50: 7.0}, ops="torchscript", device_ms="4.5")
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert "What each part contributes" not in (tmp_path / "final_report.md").read_text()
    measure("b", CASE4, {10: 6.0, 50: 9.0, 100: 99.0}, {"ops": "native", "decode_tokens": 3}, device_ms="4.0")
    path = tmp_path / "ablation" / "b" / f"{CASE4.name}_ttft.csv"  # whose protocol's mean is another than its warm one
    table = pd.read_csv(path)
    table.assign(mean_ms=table["mean_ms"] + 100).to_csv(path, index=False)
    measure("a", CASE2, {10: 8.0, 50: 8.0}, {"ops": "native", "precapture": "10,50,100"})
    measure("d", CASE4, {10: 1.0}, {})
    measure("e", CASE4, {10: 1.0}, {})
    (tmp_path / "ablation" / "e" / f"{CASE4.name}_p99.csv").unlink()  # it has not come so far
    measure("c", CASE4, {10: 1.0}, {}, protocol="paper, 5 ms apart", started="2020-01-01T00:00:00+00:00")
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    assert (
        "| JIT+CUDA | | | 6.00 | 4.50 | 6.00 |\n"
        "| CUDA Graph | `--precapture 10,…,100` | | 8.00 | | 8.00 |\n"
        "| JIT+CUDA | `--ops native` | | 7.50 | 4.00 | 7.50 |\n"
    ) in squeezed(tmp_path / "final_report.md")
    assert "averages over 10, 50 tokens" in report
    assert "- ablation/c is left out: protocol paper, 5 ms apart instead of paper" in report
    assert "- ablation/d is left out: it has not been measured at all lengths" in report
    assert "ablation/e" not in report
    write(tmp_path, CASE4, {10: 5.0, 50: 7.0}, ops="torchscript", commit="another")
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    assert "What each part contributes" not in report and "ablation" not in report


def at_all_lengths(ms: float) -> dict[int, float]:
    return dict.fromkeys(PAPER_PROMPT_LENGTHS, ms)


def claims(report: str) -> set[tuple[str, ...]]:
    """The rows of the report's table of claims."""
    table = report.split("## The study's claims\n\n")[1].split("\n\n")[0]
    return {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in table.splitlines()}


def test_claims_are_judged_on_protocol_and_warm_means(tmp_path: Path) -> None:
    write(tmp_path, CASE1, at_all_lengths(20.0))
    write(tmp_path, CASE2, at_all_lengths(4.5) | {10: 3.0})
    write(tmp_path, CASE4, at_all_lengths(4.0))
    write(tmp_path, CASE3, {10: 1.0})  # a case that ended early decides nothing about the others
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    assert claims(report) >= {
        ("Baseline/hybrid, TTFT", "4.48 ×", "1.79 ×", "5.00 × holds", "not measured"),
        ("Baseline/hybrid, warm", "4.48 ×", "1.79 ×", "5.00 × holds", "not measured"),
        ("CUDA Graph/hybrid, P99", "1.23 ×", "1.21 ×", "1.08 × fails", "not measured"),
        ("JIT only/hybrid, P99", "1.40 ×", "4.19 ×", "0.25 × over 1", "not measured"),
        ("rows won of 18", "17", "9", "0 of 2", "not measured"),
    }
    (tmp_path / f"{CASE3.name}_ttft.csv").unlink()
    (tmp_path / f"{CASE3.name}_p99.csv").unlink()
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    assert claims(report) >= {
        ("rows won of 18", "17", "9", "16 of 18 fails", "not measured"),
        ("P99 rows of CUDA Graph", "8 of 8", "8 of 8", "1 of 8 fails", "not measured"),
    }
    assert "(the report has them apart: 'What the means hold')" in report and "## What the means hold" in report


@pytest.mark.parametrize("other", [{"protocol": "paper, 5 ms apart"}, {"graph_backend": "emulated"}], ids=str)
def test_another_protocol_and_emulated_graphs_get_no_verdict(tmp_path: Path, other: dict[str, str]) -> None:
    for case, ms in ((CASE1, 20.0), (CASE2, 4.0), (CASE4, 4.0)):
        write(tmp_path, case, at_all_lengths(ms), **other)
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    found = {row[0]: row[3] for row in claims(report)}
    assert (found["Baseline/hybrid, TTFT"], found["rows won of 18"]) == ("5.00 ×", "0+18 of 18")
    assert "holds |" not in report and "fails |" not in report and "open |" not in report


def test_what_holds_against_some_rivals_only_is_no_verdict(tmp_path: Path) -> None:
    def report() -> str:
        assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
        return (tmp_path / "final_report.md").read_text()

    for case, ms in ((CASE1, 20.0), (CASE2, 3.0), (CASE3, 30.0), (CASE4, 4.0), (CASE4_FUSED, 2.0)):
        write(tmp_path, case, at_all_lengths(ms))
    open_for = "- Open: TensorRT-LLM was not measured and could win some rows.\n"
    assert claims(report()) >= {
        ("rows won of 18", "17", "9", "0 of 18 fails", "18 of 18 open"),
        ("P99 rows of CUDA Graph", "8 of 8", "8 of 8", "8 of 8 open", "0 of 8 fails"),
    }
    assert open_for in report()
    (tmp_path / f"{CASE1.name}_p99.csv").unlink()
    assert "18 of 18 open" in report(), "a rival counts as measured where both tables have it"
    assert "- Open: Baseline and TensorRT-LLM were not measured and could win some rows.\n" in report()
    write(tmp_path, CASE1, at_all_lengths(20.0))
    write(tmp_path, CASE5, at_all_lengths(5.0))
    assert claims(report()) >= {
        ("rows won of 18", "17", "9", "0 of 18 fails", "18 of 18 holds"),
        ("P99 rows of CUDA Graph", "8 of 8", "8 of 8", "8 of 8 holds", "0 of 8 fails"),
    }
    assert "- Open:" not in report()


@pytest.mark.parametrize(
    ("samples", "rule"),
    [("5", "of 5 requests a length, the largest."), ("100", "of 100 requests a length, the second largest."),
     ("1000", "of 1000 requests a length, number 11 from the top.")],
)  # fmt: skip
def test_what_a_p99_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], samples: str, rule: str) -> None:
    write(tmp_path, CASE1, {10: 20.0}, samples=samples)
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    told = f"By nearest rank: {rule}"
    assert capsys.readouterr().out.count(told) == (tmp_path / "final_report.md").read_text().count(told) == 1


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda t: t.replace("20.0", "abc", 1), "line 2, column mean_ms: 'abc' is no number"),
        (lambda t: t.replace("20.0", "-1", 1), "line 2, column mean_ms: -1 is no time"),
        (lambda t: t.replace("20.0", "nan", 1), "line 2, column mean_ms: nan is no time"),
        (lambda t: t.replace("20.0", "0", 1), "line 2, column mean_ms: 0 is no time"),
        (lambda t: t.replace("20.0", "", 1), "line 2, column mean_ms: the cell is empty"),
        (lambda t: t[: t.rindex("GPU")], "line 3, column run_id: the row has"),
        (lambda t: t.replace("mean_ms", "average", 1), "line 1: column mean_ms is missing"),
        (lambda t: "", "line 1: the file is empty"),
        (lambda t: t.splitlines()[0], "line 2: no row"),
        (lambda t: t.replace("50,", "10,", 1), "line 3, column prompt_length: 10 stands twice"),
        (lambda t: t.replace("GPU", "G" * 200_000, 1), "cannot be read: field larger than field limit"),
        (lambda t: t.replace("std_ms", "mean_ms", 1), "line 1: column mean_ms stands there 2 times"),
        (lambda t: t.replace("commit", "device", 1), "line 1: column device stands there 2 times"),
        (lambda t: t.replace("2026-01-01T00:00:00+00:00", "30.11.2026 21:41"),
         "line 2, column started: '30.11.2026 21:41' is no time such as 2026-"),
        (lambda t: t.replace("2026-01-01T00:00:00+00:00", "2026-01-01"), "line 2, column started: '2026-01-01' is no"),
        (lambda t: t.replace("2026-01-01T", "2026-02-30T"), "line 2, column started: '2026-02-30T00:00:00+00:00' is"),
        (lambda t: t.replace("21.0", '"21,0"', 1), "line 3, column mean_ms: '21,0' has a decimal comma: write 21.0"),
        (lambda t: t.replace(",", ";").replace("21.0", "21,0", 1),
         "line 3, column mean_ms: '21,0' has a decimal comma: write 21.0"),
        (lambda t: t.replace("21.0", "inf", 1), "line 3, column mean_ms: inf is no time, count or rate"),
        (lambda t: t.replace("21.0", "2_1", 1), "line 3, column mean_ms: '2_1' is no number"),
        (lambda t: t.replace("21.0", "\u0662\u0661", 1), "line 3, column mean_ms: '\u0662\u0661' is no number"),
        (lambda t: t.replace("\n50,", "\n50.5,", 1), "line 3, column prompt_length: 50.5 is no prompt length"),
        (lambda t: "r2".join(t.rsplit("r1", 1)),
         "line 3, column run_id: 'r2' instead of 'r1': a file holds one run's rows"),
        (lambda t: "H200".join(t.rsplit("GPU", 1)), "line 3, column device: 'H200' instead of 'GPU': a file"),
        (lambda t: t.replace(",0,paper", ",1,paper", 1), "line 3, column seed: '0' instead of '1': a file"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, damage: object, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, CASE1, {10: 20.0, 50: 21.0})
    path = tmp_path / "case1_baseline_ttft.csv"
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert str(path) in told and told.count("\n") == 1


def test_a_file_from_before_a_column_was_added_is_read(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0})
    for kind in ("ttft", "p99"):
        path = tmp_path / f"{CASE1.name}_{kind}.csv"
        table = pd.read_csv(path)
        added = sorted(ADDED_LATER & set(table.columns))
        assert "chunked" in added
        table.drop(columns=added).to_csv(path, index=False)
    assert build_table(load_results(tmp_path), TTFT).frame()["baseline_ms"].iloc[0] == 20.0


def test_a_length_sweep_is_plotted(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0})
    (tmp_path / "length_sweep").mkdir()
    write(tmp_path / "length_sweep", CASE4_FUSED, {1: 3.0, 64: 3.0, 2048: 30.0}, device_ms="2")
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    assert (tmp_path / "final_growth.png").read_bytes().startswith(b"\x89PNG")
    assert "final_growth.png" in (tmp_path / "final_report.md").read_text()


def test_the_floor_is_of_a_run_that_is_named(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0, 50: 20.0}, floor_ms="3.0")
    write(tmp_path, CASE4, {50: 5.0, 10: 5.0}, floor_ms="3.5")
    write(tmp_path, CASE5, {10: 5.0, 50: 6.0})
    results = load_results(tmp_path)
    for metric in (TTFT, P99):
        found = floor_of(build_table(results, metric), results)
        assert found is not None
        assert (found[0].title, dict(found[1])) == ("JIT+CUDA", {10: 3.5, 50: 3.5}), "TensorRT-LLM's knows no rates"
    write(tmp_path, CASE4, {10: 5.0})
    write(tmp_path, CASE1, {10: 5.0})
    results = load_results(tmp_path)
    assert floor_of(build_table(results, TTFT), results) is None


def test_a_plot_names_whose_floor_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(plots, "_label_ends", lambda axes, lines: labels.extend(line.name for line in lines))
    write(tmp_path, CASE4, {10: 5.0}, floor_ms="3.0")
    results = load_results(tmp_path)
    plots.plot_table(build_table(results, TTFT), results, Evidence(), tmp_path / "plot.png")
    assert labels == ["JIT+CUDA", "floor (JIT+CUDA)"]


def test_every_line_of_a_plot_has_a_color_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colors: list[object] = []
    monkeypatch.setattr(plots, "_label_ends", lambda axes, lines: colors.extend(line.color for line in lines))
    cases = (*CASES, *PEERS)
    for case in cases:
        write(tmp_path, case, {10: 5.0}, floor_ms="3.0")
    results = load_results(tmp_path)
    plots.plot_table(build_table(results, TTFT), results, Evidence(), tmp_path / "plot.png")
    assert len(set(colors)) == len(colors) == len(cases) + 1


def test_what_the_report_says_needs_no_matplotlib() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import hybridgraph.report.markdown"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("flags", [["--bogus"], ["--output-dir"], ["--js"], ["more"]], ids=str)
def test_a_wrong_flag_is_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_final_tables(flags) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1


def test_help_shows_the_description_as_it_was_written() -> None:
    command = [sys.executable, "generate_final_tables.py", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    assert "\n    python generate_final_tables.py --output-dir output\n" in run.stdout


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, CASE1, {10: 20.0})
    (tmp_path / "final_report.md").mkdir()
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: cannot write {tmp_path / 'final_report.md'}: Is a directory\n"


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result files"):
        load_results(tmp_path)


def test_the_studys_tables_are_whole() -> None:
    for metric in ("ttft", "p99"):
        table, ours = printed(metric), figures(metric)
        assert ours.shape == (9, 5) and not ours.isna().any(axis=None)
        assert list(ours.index) == list(PAPER_PROMPT_LENGTHS)
        assert (ours.mean() - table.loc["AVERAGE", ours.columns].astype(float)).abs().max() < 0.01, "as it prints them"
        titles = {case.column: case.title for case in STUDY}
        assert [titles[column] for column in ours.idxmin(axis=1)] == list(table["printed_winner"][:-1])


def test_what_the_studys_tables_give() -> None:
    speedups = {(claim.over.key, claim.metric): round(study_speedup(claim), 2) for claim in SPEEDUP_CLAIMS}
    assert speedups == {
        ("case1", "ttft"): 1.79, ("case1", "p99"): 1.34, ("case2", "ttft"): 7.79, ("case2", "p99"): 1.21,
        ("case3", "ttft"): 4.88, ("case3", "p99"): 4.19, ("case5", "ttft"): 1.42, ("case5", "p99"): 1.25,
    }  # fmt: skip
    assert (study_wins("ttft"), study_wins("p99")) == (8, 1)
    assert study_wins("p99", CASE2) == 8, "CUDA Graph alone has the lowest P99 up to 350 tokens"


def test_the_studys_tables_pass_through_ours(tmp_path: Path) -> None:
    for case in STUDY:
        write(tmp_path, case, figures("ttft")[case.column].to_dict())
    averages = build_table(load_results(tmp_path), TTFT).averages
    assert averages["baseline"] == pytest.approx(27.84, abs=0.01)
    assert averages["jit_cuda"] == pytest.approx(15.57, abs=0.01)
    table = build_table(load_results(tmp_path), P99)
    assert table.speedups["jit_cuda"] == pytest.approx(1.79, abs=0.01)


def test_the_studys_figures_stand_beside_ours(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0, 7: 3.0})
    write(tmp_path, CASE4, {10: 5.0}, graph_backend="emulated")
    assert generate_final_tables(["--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "final_report.md").read_text()
    section = report.split("## The study's figures beside these, ms")[1].split("\n## ")[0]
    assert "| tokens | Baseline |  here | CUDA Graph | here |" in section
    assert "|     10 |    88.09 | 20.00 |      20.77 |      |" in section
    assert "|      7 |          |  3.00 |            |      |" in section
    assert "| tokens | JIT+CUDA | here~ | TRT-LLM | here |" in section
    assert "|     10 |    24.84 |  5.00 |   35.91 |      |" in section
    assert "on a GPU that it does not name. Here: m in float16 by the protocol 'paper', on GPU." in section


def test_tables_need_no_torch(tmp_path: Path) -> None:
    write(tmp_path, CASE1, {10: 20.0})
    blocked = ["torch", "transformers", "accelerate", "msgspec", "rich", "safetensors", "pynvml"]
    code = f"""
import runpy, sys
class Blocker:
    def find_spec(name, *_):
        if name in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker)
sys.argv = ["generate_final_tables.py", "--output-dir", {str(tmp_path)!r}]
runpy.run_path("generate_final_tables.py", run_name="__main__")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "final_ttft_table.csv").exists()
