"""The documentation against the software: generated parts, links, forms, and every command, run in a fresh clone."""

import importlib.util
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from architectures import tiny_model
from pages import (
    ENVIRON,
    MARKED,
    PAGES,
    README,
    ROOT,
    RUN,
    SMALL,
    TEXTS,
    blocks,
    commands,
    fences,
    fresh_clone,
    git,
    name_of,
    without_fences,
    without_generated,
)
from test_readme import COMMIT
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from hybridgraph.bench import columns
from hybridgraph.bench.samples import IDENTITY_COLUMNS, Sample

EXPERIMENTS = ROOT / "docs" / "experiments.md"
RESULTS = [page for page in PAGES if page.parent.name == "results" and page.name != "README.md"]
MAX_SENTENCES = 5
MAX_CLONE_BYTES = 8_000_000
MODEL, TEXT = "my-model", "my-text.txt"  # as the pages call a reader's own

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)
result_pages = pytest.mark.parametrize("page", RESULTS, ids=name_of)


# Generated parts


def test_generating_would_change_nothing() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, ""), f"run: python docs/generate.py\n{run.stdout}{run.stderr}"


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_part_that_is_out_of_date_is_named_and_made_again(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    fresh = "a\n<!-- begin column-table DECODE -->\n\n" + generate.column_table("DECODE") + "\n\n<!-- end -->\nb\n"
    page.write_text(fresh.replace("| `new_tokens` |", "| `old_tokens` |"))
    monkeypatch.setattr(generate, "PAGES", (page,))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "PUBLISHED", tmp_path / "none")
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == "would change page.md\n"
    assert generate.main([]) == 0
    assert page.read_text() == fresh
    assert generate.main(["--check"]) == 0
    assert generate.main(["--bogus"]) == 2


def test_every_column_of_a_file_is_described() -> None:
    assert tuple(columns.IDENTITY) == IDENTITY_COLUMNS
    assert tuple(columns.SAMPLE) == tuple(field.name for field in fields(Sample))
    described = [*columns.TTFT.values(), *columns.P99.values(), *columns.DECODE.values(), *columns.SAMPLE.values()]
    assert all(column.type and column.meaning for column in described)
    timed = {
        name: c.unit for kind in (columns.TTFT, columns.P99, columns.DECODE, columns.SAMPLE) for name, c in kind.items()
    }
    assert {unit for name, unit in timed.items() if name.endswith("_ms")} == {"ms"}


def test_every_flag_is_documented() -> None:
    documented = set(re.findall(r"^\| `(--[a-z0-9-]+)` \|", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE))
    scripts = ["case1_baseline.py", "case4_jit_cuda_client.py", "case4_jit_cuda_generator.py", "case5_tensorrt_llm.py"]
    shown: set[str] = set()
    for script in scripts:
        run = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, env=ENVIRON, capture_output=True, text=True)
        shown |= set(re.findall(r"^  (?:-h, )?(--[a-z0-9-]+)", run.stdout, flags=re.MULTILINE))
    assert shown - {"--help"} == documented


def test_every_variable_that_a_user_may_set_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    sources = [*(ROOT / "hybridgraph").rglob("*.py"), *(ROOT / "hybridgraph").rglob("*.sh")]
    used = {name for source in sources for name in re.findall(r"\bHYBRIDGRAPH_[A-Z_]*[A-Z]\b", source.read_text())}
    between_processes = {"HYBRIDGRAPH_HEARTBEAT_FD", "HYBRIDGRAPH_SCRATCH", "HYBRIDGRAPH_LOCKS"}
    assert used - between_processes == set(re.findall(r"^\| `(HYBRIDGRAPH_\w+)` \|", text, flags=re.MULTILINE))


# Links and forms


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", without_fences(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_fences(page)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


@pages
def test_every_fenced_block_says_what_it_is(page: Path) -> None:
    assert {called for called, _ in fences(page)} <= {RUN, *MARKED, *TEXTS}
    for called, content in fences(page):
        if called in TEXTS and page != EXPERIMENTS:
            found = re.search(r"^(\./\w|(python|bash|pip|git) )", content, flags=re.MULTILINE)
            assert found is None, "it is a command"


@result_pages
def test_a_page_of_results_has_its_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    title, *sections = re.findall(r"^#{1,2} (.+)$", without_fences(page), flags=re.MULTILINE)
    assert title.endswith("?")
    assert f"| {title} | [{page.stem}]({page.name}) |" in (page.parent / "README.md").read_text()
    assert sections[:-1] == ["Configuration", "Result", "In words", "Commands"]
    assert sections[-1] in ("Versions", "Versions and earlier runs")
    assert "<!-- begin " in text.split("\n## Result\n")[1].split("\n## In words\n")[0]
    words = " ".join(text.split("\n## In words\n")[1].split("\n## ")[0].split())
    assert 1 <= len(re.findall(r"[.?!](?= [A-Z]|$)", words)) <= MAX_SENTENCES
    assert any(called.startswith("bash ") for called, _ in fences(page))


@pages
def test_a_commit_is_named_where_versions_are(page: Path) -> None:
    text = without_fences(page)
    if page in RESULTS:
        text = text.split("\n## Versions")[0]
    if page != EXPERIMENTS:
        assert COMMIT.findall(re.sub(r"\]\([^)]*\)", "]", text)) == []


def test_the_log_of_experiments_has_its_form() -> None:
    _, *entries = re.split(r"^## ", without_fences(EXPERIMENTS), flags=re.MULTILINE)
    assert len(entries) >= 70
    dates = [entry[:10] for entry in entries]
    assert dates == sorted(dates), "a new entry goes to the end"
    for entry in entries:
        heading, _, body = entry.partition("\n")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d: [A-Z].*\?", heading), heading
        parts = list(dict.fromkeys(re.findall(r"^- (\w+)\b", body, flags=re.MULTILINE)))
        assert parts in (["Expected", "Measured", "Kept", "Script"], ["Expected"]), (
            f"{heading}: or it is being measured"
        )
        assert parts == ["Expected"] or re.search(r"^- Script: (not kept|none|`)", body, flags=re.MULTILINE), heading


def test_scripts_of_experiments_are_in_the_history() -> None:
    if (
        subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True).stdout
        != b"false\n"
    ):
        pytest.skip("not in a whole checkout")
    for commit in set(re.findall(r"`([0-9a-f]{7})`", without_fences(EXPERIMENTS))):
        run = subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT)
        assert run.returncode == 0, f"{commit} is not in the history"


# Commands


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, with a reader's own model and text beside the project's files."""
    made = fresh_clone(tmp_path_factory.mktemp("fresh"))
    loaded = tiny_model("llama-gqa", made / MODEL)
    loaded.module.save_pretrained(made / MODEL)
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(loaded.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(made / MODEL)
    (made / TEXT).write_text(" ".join(f"w{number % 60}" for number in range(300)))
    (made / ".git" / "info" / "exclude").write_text(f"{MODEL}\n{TEXT}\n")
    return made


@pytest.fixture
def unchanged(clone: Path) -> Iterator[None]:
    """Whatever is run in a clone without results of one's own: git has nothing to tell after it."""
    git(clone, "clean", "-qfdx", "output")
    yield
    assert git(clone, "status", "--porcelain") == ""


def run_in(clone: Path, *arguments: str, timeout_s: float = 280.0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, cwd=clone, env=ENVIRON, capture_output=True, text=True, timeout=timeout_s)


RUNNABLE = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), RUNNABLE, ids=[f"{page.name}: {command}" for page, command in RUNNABLE])
def test_its_commands_run(page: Path, command: str, clone: Path, unchanged: None) -> None:
    measures = "generate_final_tables" not in command
    run = run_in(clone, *shlex.split(command), *(shlex.split(SMALL) if measures else ()))
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    if measures:
        assert list((clone / "output").glob("case*_ttft.csv"))
    else:
        assert "Warm TTFT" in run.stdout


@pytest.mark.parametrize(
    ("page", "code"),
    [(page, code) for page in PAGES for code in blocks(page, "python run")],
    ids=lambda value: name_of(value) if isinstance(value, Path) else "",
)
def test_its_python_runs(page: Path, code: str, clone: Path, unchanged: None) -> None:
    run = run_in(clone, sys.executable, "-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout


def test_two_terminals(clone: Path, unchanged: None, tmp_path: Path) -> None:
    (block,) = (block for page in PAGES for block in blocks(page, "bash terminals"))
    generator, client = (
        [*shlex.split(line.replace("/tmp/case4", str(tmp_path / "case4"))), *shlex.split(SMALL)]
        for line in block.splitlines()
    )
    generator[0] = client[0] = sys.executable
    with subprocess.Popen(generator, cwd=clone, env=ENVIRON, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening ")
        run = run_in(clone, *client)
        assert run.returncode == 0, run.stderr
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
    assert (clone / "output" / "case4_jit_cuda_ttft.csv").exists()


def test_the_commands_that_are_run_are_the_main_ones() -> None:
    found = [command for _, command in RUNNABLE]
    assert "./run_complete_benchmark.sh" in commands(README)
    assert len(found) >= 12
    assert blocks(README, "bash clone") == ["git clone <this repository> hybridgraph && cd hybridgraph\n"]


# What a run leaves


def interrupted(clone: Path) -> None:
    flags = ["--device", "cpu", "--prompt-lengths", "4,9", "--p99-iterations", "100000", "--max-seq-len", "64"]
    process = subprocess.Popen([sys.executable, "case1_baseline.py", *flags], cwd=clone, env=ENVIRON)
    rows = clone / "output" / "case1_baseline_ttft.csv"
    until = time.monotonic() + 120
    while not (rows.exists() and len(rows.read_text().splitlines()) > 2):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    tables(clone)
    assert (clone / "output" / "final_report.md").exists()


def failed(clone: Path) -> None:
    assert run_in(clone, sys.executable, "case1_baseline.py", "--model", "no/such").returncode == 2


def tables(clone: Path) -> None:
    assert run_in(clone, sys.executable, "generate_final_tables.py").returncode == 0


@pytest.mark.parametrize("run", [tables, failed, interrupted], ids=lambda run: run.__name__)
def test_git_has_nothing_to_tell_after(run: Callable[[Path], None], clone: Path, unchanged: None) -> None:
    run(clone)


def test_a_fresh_clone_is_small(clone: Path) -> None:
    names = git(clone, "ls-files", "-z").split("\0")[:-1]
    assert sum((clone / name).stat().st_size for name in names) <= MAX_CLONE_BYTES


def test_running_text_is_free_of_what_is_generated() -> None:
    """A table that could be generated is not typed: rows of cases and times stand between markers."""
    for page in RESULTS:
        assert not re.search(r"^\| (Baseline|CUDA Graph|JIT only|JIT\+CUDA) ", without_generated(page), re.MULTILINE), (
            page
        )
