"""What it takes to add an engine, or a case of a known kind: tried, in a copy of the package, by real processes."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import ROOT, environ

from hybridgraph.cases import CASES, PEERS
from hybridgraph.sources.registry import ENGINES

TINY = ("--device", "cpu", "--prompt-lengths", "3,4", "--ttft-iterations", "1", "--p99-iterations", "2")
ENGINE = '''"""An engine that counts."""
from hybridgraph.contract import Report, SourceInfo
from hybridgraph.errors import UserError


def open_counting(config, case, progress):
    progress("learning to count", 0, 1)
    return Counting()


class Counting:
    info = SourceInfo(
        model="numbers", dtype="int", load_format="dummy", device="fingers", vocab_size=10, max_seq_len=99
    )

    def stream(self, request, emit):
        for token in range(request.max_new_tokens):
            emit(token)
        return Report()

    def stats(self):
        return {}

    def close(self):
        pass
'''
ENTRY = '    "counting": Engine(opener="counting:open_counting"),\n'
COUNTING = """Case(
        key="counting", name="peer_counting", title="Counting", column="counting",
        script="-", engine="counting",
    ),"""
CASE6 = """Case(
        key="case6", name="case6_padded_native", title="Padded, native", column="padded_native",
        script="-", generator="-", ops="native", forward="hf", graphs="padded", precapture="4", async_capture=False,
    ),"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "hybridgraph", root / "hybridgraph", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "generate_final_tables.py", root)
    return root


def add(path: Path, before: str, text: str) -> None:
    """Insert ``text`` behind the one line that starts with ``before``."""
    source = path.read_text()
    assert len(re.findall(f"^{re.escape(before)}", source, re.MULTILINE)) == 1
    at = source.index("\n", source.index(before)) + 1
    path.write_text(source[:at] + text + source[at:])


def run(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = environ(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, *arguments, "--output-dir", "output"],
        cwd=root, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def averages(root: Path) -> dict[str, str]:
    run(root, "generate_final_tables.py")
    with (root / "output/final_ttft_table.csv").open() as file:
        return list(csv.DictReader(file))[-1]


def test_a_new_engine_is_one_file_one_entry_and_the_row_of_its_column(checkout: Path) -> None:
    (checkout / "hybridgraph/sources/counting.py").write_text(ENGINE)
    add(checkout / "hybridgraph/sources/registry.py", "ENGINES = {", ENTRY)
    cases = checkout / "hybridgraph/cases.py"
    cases.write_text(re.sub(r"^PEERS = \(", f"PEERS = ({COUNTING}", cases.read_text(), flags=re.MULTILINE))
    run(checkout, "-m", "hybridgraph", "case", "counting", *TINY)
    assert float(averages(checkout)["counting_ms"]) > 0


def test_a_new_case_of_a_known_kind_is_one_row(checkout: Path) -> None:
    cases = checkout / "hybridgraph/cases.py"
    cases.write_text(re.sub(r"^CASES = \(", f"CASES = ({CASE6}", cases.read_text(), flags=re.MULTILINE))
    done = run(checkout, "-m", "hybridgraph", "case", "case6", *TINY)
    assert "padded 2" in done.stdout, "a prompt of 3 ran on the graph of 4"
    assert float(averages(checkout)["padded_native_ms"]) > 0


def test_every_case_names_an_engine_and_every_engine_has_a_case() -> None:
    assert {case.engine for case in (*CASES, *PEERS)} == set(ENGINES)


def test_one_function_opens_a_source() -> None:
    sources = [path.read_text() for path in (ROOT / "hybridgraph").rglob("*.py")]
    assert sum(source.count("def open_source(") for source in sources) == 1
