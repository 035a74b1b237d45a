"""The published results, as they come with the project: rows are those of their samples, tables those of their rows."""

import json
import resource
import struct
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from hybridgraph.bench.environment import known_of_run
from hybridgraph.bench.samples import RunIdentity, Sample
from hybridgraph.bench.store import ResultFiles
from hybridgraph.places import PUBLISHED, SHOWN
from hybridgraph.report.main import generate_final_tables

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = "_samples.jsonl.gz"
# Everything that follows from the samples, made again in a process that has no torch, and compared byte for byte.
REGENERATE = """
import csv
import io
import sys
class Blocker:
    def find_spec(name, *_):
        if name in ("torch", "transformers", "rich", "msgspec", "pynvml", "matplotlib"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker)
from pathlib import Path
from hybridgraph.bench.environment import known_of_run
from hybridgraph.bench.store import ResultFiles, ResultWriter
from hybridgraph.contract import SourceInfo
from hybridgraph.report.final import REPORT, derive
from hybridgraph.roofline import ModelShape, Rates

published, scratch = map(Path, sys.argv[1:])
compared = 0
for path in sorted(published.rglob("*_samples.jsonl.gz")):
    files = ResultFiles(path.parent, path.name.removesuffix("_samples.jsonl.gz"))
    identity, samples = files.read_samples()
    source = known_of_run(files.directory, files.name, identity.run_id)["source"]
    parts = {"shape": ModelShape(**source["shape"]), "rates": source["rates"] and Rates(**source["rates"])}
    again = ResultFiles(scratch, files.name)
    ResultWriter(again, identity, SourceInfo(**source | parts), samples).write_summaries()
    for made in scratch.glob("*.csv"):
        kept = path.with_name(made.name).read_text()
        columns = kept.partition("\\n")[0].split(",")  # a file from before a column was added has the others
        text = io.StringIO()
        table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\\n")
        table.writeheader()
        table.writerows(csv.DictReader(io.StringIO(made.read_text())))
        assert text.getvalue() == kept, path.with_name(made.name)
        compared += 1
    for made in scratch.iterdir():
        made.unlink()
for report in sorted(published.rglob(REPORT)):
    for name, text in derive(report.parent).texts().items():
        assert report.with_name(name).read_bytes() == text.encode(), (report.parent, name)
        compared += 1
print(compared)
"""


def git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)


def runs() -> list[tuple[ResultFiles, RunIdentity, list[Sample], dict[str, Any]]]:
    """Every run: its files, who it was, its samples, and what ``environment.json`` tells of its source."""
    found = []
    for path in sorted(PUBLISHED.rglob(f"*{SAMPLES}")):
        files = ResultFiles(path.parent, path.name.removesuffix(SAMPLES))
        read = files.read_samples()
        assert read is not None
        found.append((files, *read, known_of_run(files.directory, files.name, read[0].run_id)["source"]))
    assert found
    return found


def test_everything_follows_from_the_samples_byte_for_byte_without_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", REGENERATE, str(PUBLISHED), str(tmp_path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0, run.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10, "seconds of the processor"
    result_files = [path for path in PUBLISHED.rglob("*.csv") if not path.name.startswith("final_")]
    derived = [path for path in PUBLISHED.rglob("final_*") if path.suffix != ".png"]
    assert int(run.stdout) == len(result_files) + len(derived), "no file stands apart"


def test_every_run_is_of_committed_code_on_a_device_that_is_named() -> None:
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != b"false":
        pytest.skip("not in a whole checkout")
    for files, identity, _, source in runs():
        assert git("merge-base", "--is-ancestor", identity.commit, "HEAD").returncode == 0, files
        assert identity.device == source["device"] == source["environment"]["gpu"]["name"], files


def test_samples_are_packed_without_a_time_or_a_name() -> None:
    for path in PUBLISHED.rglob(f"*{SAMPLES}"):
        magic, flags, mtime = struct.unpack("<2sxBI", path.read_bytes()[:8])
        assert (magic, flags, mtime) == (b"\x1f\x8b", 0, 0), path
    assert not list(PUBLISHED.rglob("*.jsonl"))


def test_a_published_run_is_a_directory_that_the_readme_of_the_results_names() -> None:
    readme = (PUBLISHED.parent / "README.md").read_text()
    for directory in filter(Path.is_dir, PUBLISHED.iterdir()):
        assert f"| `{directory.name}`" in readme, directory


def test_what_was_measured_is_what_was_published() -> None:
    """Whoever damages a published file by mistake does not change its checksum as well."""
    sums = dict(line.split()[::-1] for line in (PUBLISHED / "SHA256SUMS").read_text().splitlines())
    kept = [
        p for p in PUBLISHED.rglob("*") if p.is_file() and not p.name.startswith("final_") and p.name != "SHA256SUMS"
    ]
    assert {str(path.relative_to(PUBLISHED)): sha256(path.read_bytes()).hexdigest() for path in kept} == sums


@pytest.mark.parametrize("asked", [(), ("--output-dir", "published/h200"), ("--output-dir", str(SHOWN))], ids=str)
def test_a_published_run_is_printed_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in PUBLISHED.rglob("*")}
    assert generate_final_tables([*asked, "--json"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("output has no results of yours. This is the published run published/h200.\n") is not asked
    assert "Device: NVIDIA H200\n" in told
    assert json.loads(told.splitlines()[-1])["identity"]["device"] == "NVIDIA H200"
    assert {path: path.stat().st_mtime_ns for path in PUBLISHED.rglob("*")} == before
    assert not list(tmp_path.iterdir())


def test_results_of_ones_own_come_before_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "output"
    own.mkdir()
    (own / "environment.json").write_text('{"not_run": {"case1_baseline": "no torch"}}')
    assert generate_final_tables([]) == 0, "an attempt that failed has left no results"
    assert "This is the published run" in capsys.readouterr().out
    (own / "case1_baseline_p99.csv").write_bytes((SHOWN / "case1_baseline_p99.csv").read_bytes())
    assert generate_final_tables([]) == 0
    assert "published" not in capsys.readouterr().out
    assert (own / "final_report.md").exists()


def test_a_published_run_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_final_tables(["--output-dir", "published/none"]) == 2
    assert capsys.readouterr().err.startswith("error: published/none holds no result files")
