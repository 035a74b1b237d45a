"""Tables and plots whatever surrounds them: a user's settings of matplotlib, homes, links and pipes, many rows."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_report import IDENTITY, write

from hybridgraph.bench.samples import TTFT_COLUMNS
from hybridgraph.cases import CASE1, CASE4, CASE4_FUSED
from hybridgraph.report import final, plots
from hybridgraph.report.main import generate_final_tables
from hybridgraph.report.plots import Line

ROOT = Path(__file__).resolve().parent.parent
PNG = b"\x89PNG"
ODD_RC = b"axes.facecolor: red\nnonsense\n"
BROKEN_RC = b"\xff\xfe\x00 lines.linewidth: \xe9\nbackend: Qt5Agg\n"


def tables(directory: Path, *, cwd: Path = ROOT, **surroundings: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in (os.environ | surroundings).items() if value is not None}
    command = [sys.executable, str(ROOT / "generate_final_tables.py"), "--output-dir", str(directory)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def write_results(directory: Path) -> Path:
    directory.mkdir()
    write(directory, CASE1, {10: 20.0, 50: 30.0})
    write(directory, CASE4, {10: 5.0, 50: 6.0}, floor_ms="3.0")
    return directory


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that follow from these results where nothing is unusual, by name."""
    directory = write_results(tmp_path_factory.mktemp("expected") / "results")
    run = tables(directory)
    assert (run.returncode, run.stderr) == (0, "")
    found = shown(directory)
    assert all(found[name].startswith(PNG) for name in ("final_warm_ttft.png", "final_p99.png", "final_decode.png"))
    return found


def shown(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("final_*")}


HOSTILE: dict[str, dict[str, str | None]] = {
    "backend of a notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "backend that is none": {"MPLBACKEND": "nonsense"},
    "backend of a window": {"MPLBACKEND": "QtAgg", "DISPLAY": ":99"},
    "settings that are not there": {"MATPLOTLIBRC": "/nonexistent"},
    "no home": {"HOME": "/nonexistent", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None, "MPLCONFIGDIR": None},
    "a home without an owner": {"HOME": None, "XDG_CACHE_HOME": "/dev/null/cache"},
    "a place that cannot be written": {"MPLCONFIGDIR": "/dev/null/config", "XDG_CONFIG_HOME": "/dev/null"},
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "another language": {"LANG": "de_DE.UTF-8", "LC_ALL": "C"},
}


@pytest.mark.parametrize("surroundings", HOSTILE.values(), ids=HOSTILE)
def test_plots_are_the_same_whatever_the_surroundings(
    results: Path, expected: dict[str, bytes], surroundings: dict[str, str | None]
) -> None:
    run = tables(results, **surroundings)
    assert (run.returncode, run.stderr) == (0, "")
    assert shown(results) == expected


@pytest.mark.parametrize(
    ("place", "content"),
    [("here", BROKEN_RC), ("here", ODD_RC), ("here", None), ("MATPLOTLIBRC", BROKEN_RC), ("MPLCONFIGDIR", None)],
    ids=["broken, here", "odd, here", "pipe, here", "broken, named", "pipe, configured"],
)
@pytest.mark.timeout(120)
def test_settings_of_a_user_for_matplotlib_are_not_read(
    results: Path, tmp_path: Path, expected: dict[str, bytes], place: str, content: bytes | None
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    if content is None:
        os.mkfifo(own / "matplotlibrc")
    else:
        (own / "matplotlibrc").write_bytes(content)
    run = tables(results, cwd=own) if place == "here" else tables(results, **{place: str(own)})
    assert (run.returncode, run.stderr) == (0, "")
    assert shown(results) == expected


def test_a_plot_that_fails_is_one_line_and_the_tables_stand(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> bytes:
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(final, "_plot", fails)
    assert generate_final_tables(["--output-dir", str(results)]) == 1
    said = capsys.readouterr()
    for line, name in zip(said.err.splitlines(), ("final_warm_ttft", "final_p99", "final_decode"), strict=True):
        assert line == f"{name}.png could not be drawn: RuntimeError: no font at all"
    assert "TTFT, mean of the protocol's requests, ms" in said.out
    assert (results / "final_ttft_table.csv").exists()
    report = (results / "final_report.md").read_text()
    assert "JIT+CUDA" in report and ".png" not in report


def test_without_matplotlib_the_tables_stand(results: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['matplotlib'] = None; sys.argv[1:] = ['--output-dir', sys.argv[1]];"
        "runpy.run_path('generate_final_tables.py', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code, str(results)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert all(" could not be drawn: " in line for line in run.stderr.splitlines())
    assert (results / "final_ttft_table.csv").exists() and (results / "final_report.md").exists()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [({}, [3.0, 5.0, 30.0]), ({"floor_ms": "2"}, [3.0, 5.0, 30.0]), ({"device_ms": "4"}, [4.0] * 3)],
    ids=str,
)
def test_a_run_over_lengths_without_a_gpu_has_a_line(
    results: Path, monkeypatch: pytest.MonkeyPatch, cells: dict[str, str], expected: list[float]
) -> None:
    drawn: list[list[Line]] = []
    monkeypatch.setattr(plots, "_label_ends", lambda axes, lines: drawn.append(lines))
    (results / "length_sweep").mkdir()
    write(results / "length_sweep", CASE4_FUSED, {1: 3.0, 64: 5.0, 2048: 30.0}, graph_backend="emulated", **cells)
    assert generate_final_tables(["--output-dir", str(results)]) == 0
    assert (results / "final_growth.png").read_bytes().startswith(PNG)
    times, *floor = drawn[-1]
    assert times.values.tolist() == expected and times.values.index.tolist() == [1, 64, 2048]
    assert len(floor) == len(cells.keys() & {"floor_ms"})


def test_a_run_over_lengths_of_unknown_times_gives_no_plot(results: Path) -> None:
    (results / "length_sweep").mkdir()
    write(results / "length_sweep", CASE4_FUSED, {1: 3.0})
    path = results / "length_sweep" / f"{CASE4_FUSED.name}_ttft.csv"
    heading, row = (line.split(",") for line in path.read_text().splitlines())
    row[heading.index("warm_mean_ms")] = ""
    path.write_text(",".join(heading) + "\n" + ",".join(row) + "\n")
    assert generate_final_tables(["--output-dir", str(results)]) == 0
    assert not (results / "final_growth.png").exists()
    assert "final_growth" not in (results / "final_report.md").read_text()


OBSTACLES: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "link": lambda path: path.symlink_to(path.parents[1] / "outside"),
    "endless": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize(
    "name",
    ["case1_baseline_ttft.csv", "environment.json", "length_sweep/case4_jit_cuda_fused_ttft.csv",
     "ablation/a/case4_jit_cuda_p99.csv", "ablation/a/environment.json"],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_what_is_read_is_a_file_or_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], name: str, obstacle: str
) -> None:
    (results.parent / "outside").write_text("of someone else")
    for directory in ("length_sweep", "ablation/a"):
        (results / directory).mkdir(parents=True)
        write(results / directory, CASE4_FUSED if directory == "length_sweep" else CASE4, {10: 5.0, 50: 5.0})
    (results / name).unlink(missing_ok=True)
    OBSTACLES[obstacle](results / name)
    assert generate_final_tables(["--output-dir", str(results)]) == 2
    said = capsys.readouterr().err
    what = "regular file" if obstacle == "pipe" else "symbolic link"
    assert said.startswith(f"error: {results / name} cannot be read: it is") and what in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("suffix", ["", ".partial"])
@pytest.mark.timeout(60)
def test_what_is_written_replaces_what_lies_there(results: Path, obstacle: str, suffix: str) -> None:
    (results.parent / "outside").write_text("of someone else")
    assert generate_final_tables(["--output-dir", str(results)]) == 0
    expected = shown(results)
    for name in expected:
        (results / name).unlink()
        OBSTACLES[obstacle](results / f"{name}{suffix}")
    assert generate_final_tables(["--output-dir", str(results)]) == 0
    assert shown(results) == expected
    assert not any((results / name).is_symlink() for name in expected)
    assert (results.parent / "outside").read_text() == "of someone else"


def seconds_of_tables(directory: Path, num_rows: int) -> float:
    """Processor time for the tables of one file of that many rows."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    cells = dict.fromkeys(TTFT_COLUMNS, "1.5") | IDENTITY | {"prompt_length": "{0}", "mean_ms": "{0}.5"}
    row = ",".join(cells[column] for column in TTFT_COLUMNS)
    lines = [",".join(TTFT_COLUMNS), *(row.format(length) for length in range(1, num_rows + 1))]
    (directory / f"{CASE1.name}_ttft.csv").write_text("\n".join(lines) + "\n")
    begun_s = time.process_time()
    assert generate_final_tables(["--output-dir", str(directory)]) == 0
    return time.process_time() - begun_s


@pytest.mark.timeout(600)
def test_tables_take_time_in_proportion_to_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds_of_tables(tmp_path / "first", 10)  # imports, fonts
    few_s, many_s = (seconds_of_tables(tmp_path / str(rows), rows) for rows in (2_000, 20_000))
    capsys.readouterr()
    print(f"2,000 rows take {few_s:.2f} s, 20,000 rows {many_s:.2f} s")
    assert many_s < 30 * few_s
    assert many_s < 60
