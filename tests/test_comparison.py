"""Two runs beside each other: what is told, what is refused, what counts as a regression."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hybridgraph.cases import CASE1, CASE4, CASES
from hybridgraph.errors import UserError
from hybridgraph.places import PUBLISHED
from hybridgraph.report.comparison import Change, Comparison, Run, as_text, compare, open_run
from hybridgraph.report.evidence import Evidence, Interval, Units
from hybridgraph.report.load import Results, load_results
from hybridgraph.report.main import generate_final_tables
from hybridgraph.report.tables import METRICS, P99, WARM

SEED = 5


def published(name: str) -> Run:
    return open_run(f"published/{name}", PUBLISHED / name)


def launched(name: str, factor: float, random: np.random.Generator) -> Run:
    """The published run's tables times ``factor``, by five launches that differ by 1 %."""
    results = load_results(PUBLISHED / "h200")
    tables = {
        kind: {
            case: rows.assign(**{c: rows[c] * factor for c in rows if c.endswith("_ms")}) for case, rows in of.items()
        }
        for kind, of in results.tables.items()
    }
    lengths = tables["ttft"][CASE1.name].index
    units = {}
    for metric in METRICS:
        units[metric.key] = {
            name: Units(pd.DataFrame({n: row * random.normal(1, 0.01, 5) for n, row in values.items()}), "launches")
            for name, values in ((case, rows[metric.column]) for case, rows in tables[metric.kind].items())
        }
    assert len(lengths) == 9
    return Run(name, Results(tables, results.identity, results.environment), Evidence({}, units))


@pytest.fixture
def random() -> np.random.Generator:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def verdicts(comparison: Comparison, verdict: str) -> float:
    return sum(change.verdict == verdict for change in comparison.changes) / len(comparison.changes)


def test_compare_of_launches_finds_a_change_of_ten_percent_and_its_direction(random: np.random.Generator) -> None:
    one = launched("before", 1.0, random)
    slower, faster, same = (compare(one, launched("after", f, random), across=False) for f in (1.1, 1 / 1.1, 1.0))
    assert verdicts(slower, "slower") == verdicts(faster, "faster") == 1
    assert verdicts(same, "no difference") > 0.85
    assert len(slower.regressions(5)) == len(slower.changes) and slower.regressions(20) == faster.regressions(0) == []


def test_compare_averages_over_the_lengths_that_both_runs_have(random: np.random.Generator) -> None:
    one, other = launched("before", 1.0, random), launched("after", 1.1, random)
    rows = other.results.tables["ttft"]
    rows[CASE4.name] = rows[CASE4.name].drop(index=[10, 50])
    changes = [c for c in compare(one, other, across=False).changes if c.case == CASE4 and c.metric == WARM]
    assert [c.length for c in changes] == [None, 100, 150, 200, 250, 300, 350, 400]
    expected = one.results.tables["ttft"][CASE4.name]["warm_mean_ms"].drop(index=[10, 50]).mean()
    assert changes[0].before_ms == pytest.approx(expected)
    assert changes[0].percent == pytest.approx(10)


def test_compare_of_single_launches_says_what_it_uses_instead() -> None:
    text = as_text(compare(published("h200"), published("repeated"), across=False))
    assert "One launch each cannot tell how much launches differ. What is used instead:" in text
    assert "1 launch" in text.splitlines()[0]
    # JIT only took 1.5 times as long on the other host; the graphs' cases are no different.
    changed = re.findall(r"^  ([\w+ ]+) on average: ([-+][\d.]+) %", text, re.M)
    assert {name for name, _ in changed} == {"Baseline", "JIT only"}


def test_comparison_fits_a_terminal() -> None:
    text = as_text(compare(published("h200"), published("repeated"), across=False))
    assert max(map(len, text.splitlines())) <= 80


def test_compare_refuses_runs_of_different_gpus_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"device NVIDIA H100 80GB HBM3 instead of NVIDIA H200.*--across"):
        compare(published("h200"), published("h100"), across=False)
    with pytest.raises(UserError, match=r"model .* instead of llama-2-7b"):
        compare(published("h200"), published("smollm2"), across=False)


def test_compare_across_says_so_in_every_heading() -> None:
    text = as_text(compare(published("h200"), published("h100"), across=True))
    headings = [line for line in text.splitlines() if line.startswith("Change from")]
    assert len(headings) >= 3
    assert text.count("ACROSS device NVIDIA H100 80GB HBM3 instead of NVIDIA H200") == len(headings)


def test_comparison_as_csv_has_a_row_a_change_with_its_interval(random: np.random.Generator) -> None:
    comparison = compare(launched("before", 1.0, random), launched("after", 1.1, random), across=False)
    frame = comparison.frame()
    assert len(frame) == len(comparison.changes) == len(METRICS) * 5 * 10
    row = frame[(frame["case"] == CASE4.name) & (frame["figure"] == P99.key) & (frame["prompt_length"] == 400)].iloc[0]
    assert row["low_percent"] < row["change_percent"] < row["high_percent"] and row["verdict"] == "slower"
    assert (row["basis"], row["units"], row["across"]) == ("launches", 5, "")


def test_change_without_an_interval_cannot_tell() -> None:
    nan = float("nan")
    change = Change(WARM, CASE1, 10, 1.0, 2.0, Interval(nan, nan, "nothing", 0))
    assert (change.verdict, change.cell()) == ("cannot tell", "+100.0?")
    assert Comparison(published("h200"), published("h200"), "", [change]).regressions(0) == []


def test_a_run_without_a_common_case_is_refused(random: np.random.Generator) -> None:
    one, other = launched("before", 1.0, random), launched("after", 1.0, random)
    for tables in other.results.tables.values():
        for case in CASES:
            tables.pop(case.name, None)
    with pytest.raises(UserError, match="no case with a length in common"):
        compare(one, other, across=False)


def command(tmp_path: Path, *arguments: str) -> int:
    return generate_final_tables(["--compare", *arguments, "--output-dir", str(tmp_path)])


def test_command_compares_published_runs_by_name_and_writes_csv_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "published/h200", "published/repeated", "--json") == 0
    told = capsys.readouterr().out
    assert "published/repeated: 2026-11-29" in told
    rows = pd.read_csv(tmp_path / "final_comparison.csv")
    assert json.loads(told.splitlines()[-1])["changes"][0]["figure"] == rows["figure"][0] == WARM.key
    drawing = (tmp_path / "final_comparison.svg").read_text()
    assert "<!-- Change from published/h200 to published/repeated -->" in drawing and "<!-- change, % -->" in drawing
    assert (tmp_path / "final_comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("limit", "code"), [("5", 1), ("150", 0)])
def test_command_fails_above_a_limit_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, code: int
) -> None:
    assert command(tmp_path, "published/h200", "published/repeated", "--fail-above", limit) == code
    assert f"slower by more than {limit} % beyond the noise" in capsys.readouterr().out
    assert command(tmp_path, "published/h200", "published/h200", "--fail-above", "0") == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("published/h200",), "--compare published/h200: two runs or more are compared"),
        (("published/h200", "published/h100"), "device NVIDIA H100 80GB HBM3 instead of NVIDIA H200"),
        (("published/h200", "published/none"), "published/none holds no result files"),
        (("published/h200", "published/h200", "--fail-above", "-1"), "--fail-above"),
        (("published/h200", "published/h200", "--page", "x.html"), "--page: a comparison has no page"),
    ],
)
def test_command_tells_mistakes_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    assert command(tmp_path, *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and told in lines[0]


def test_flags_of_a_comparison_without_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_final_tables(["--across"]) == 2
    assert "--across belongs to --compare" in capsys.readouterr().err


def test_comparison_changes_nothing_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(PUBLISHED / "h200", "published/h200", "published/repeated") == 2
    assert "published results, which stay as they are" in capsys.readouterr().err
