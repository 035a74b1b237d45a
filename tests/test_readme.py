"""The README as a reader meets it: short, its parts in order, its names those of the files."""

import re
from pathlib import Path

import pytest
from pages import PAGES, README, ROOT, blocks, commands, fences, name_of, without_fences

TEXT = README.read_text(encoding="utf-8")
MAX_LINES, MAX_WORDS, MAX_FINDING_WORDS = 150, 900, 25
COMMIT = re.compile(r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b")


def section(heading: str) -> str:
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def items(text: str, mark: str) -> list[str]:
    """The items of a list, each on one line."""
    found = re.findall(rf"^{mark} (.+?)(?=\n{mark} |\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(item.split()) for item in found]


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= MAX_LINES
    assert len(TEXT.split()) <= MAX_WORDS


def test_it_names_no_commit() -> None:
    assert COMMIT.findall(without_fences(README)) == []
    assert COMMIT.findall("by 8222a9112d9f, and 5b04422") == ["8222a9112d9f", "5b04422"]


def test_it_begins_with_a_sentence_a_plot_a_table_and_the_commands() -> None:
    parts = [
        TEXT.index(part) for part in ("contribute?", "![", "| TensorRT-LLM ", "- One ", "## Run it", "## Without a GPU")
    ]
    assert parts == sorted(parts)
    assert len(re.findall(r"^\| (?!case|-)", TEXT.split("<!-- end -->")[0], flags=re.MULTILINE)) == 6
    assert commands(README) == ["./run_complete_benchmark.sh", "python generate_final_tables.py"]
    (code,) = blocks(README, "python run")
    assert len([line for line in code.splitlines() if line]) <= 6


def test_findings_are_short_and_lead_to_their_page() -> None:
    findings = items(section("What was found"), r"[0-9]\.")
    assert len(findings) == 5
    for finding in findings:
        sentence, _, link = finding.rpartition(" [")
        assert len(sentence.split()) <= MAX_FINDING_WORDS, finding
        assert re.fullmatch(r"[^]]+\]\(docs/results/[a-z_0-9]+\.md\)", link), finding


def test_five_words_are_defined_in_a_line_each() -> None:
    defined = items(section("The five cases"), "-")
    assert len(defined) == 5
    assert all(re.match(r"\*\*\w+\*\*: ", line) and len(line) <= 120 for line in defined)


def test_the_index_names_every_page() -> None:
    pages = {name_of(page) for page in PAGES if page.parent == ROOT / "docs"} | {"docs/results/README.md"}
    assert pages | {"CONTRIBUTING.md"} == set(re.findall(r"\]\(([^)#]+)\)", section("Documentation")))


def names_in(directory: Path) -> set[str]:
    """What a clean checkout has there: nothing hidden, nothing generated, no empty directories."""
    generated = {"__pycache__", "build"}
    return {
        path.name
        for path in directory.iterdir()
        if not path.name.startswith((".", "__init__.")) and path.name not in generated and path.suffix != ".egg-info"
        if path.is_file() or any(child.is_file() and child.suffix != ".pyc" for child in path.rglob("*"))
    }


TREES = [(page, tree) for page in PAGES for called, tree in fences(page) if called == "tree"]


@pytest.mark.parametrize(("page", "tree"), TREES, ids=[name_of(page) for page, _ in TREES])
def test_a_tree_is_the_files(page: Path, tree: str) -> None:
    """Its names at the left are the top level's; what is indented below a directory is in that."""
    below: dict[str, set[str]] = {"": set()}
    parent = ""
    for line in tree.splitlines():
        name = line.split()[0].rstrip("/")
        if line.startswith("    "):
            below.setdefault(parent, set()).add(name)
        else:
            below[""].add(name)
            parent = name
    for directory, names in below.items():
        assert names == names_in(ROOT / directory), directory


def test_there_is_a_tree_and_every_script_is_mentioned() -> None:
    assert TREES
    for script in (*ROOT.glob("*.py"), *ROOT.glob("*.sh")):
        assert any(script.name in page.read_text(encoding="utf-8") for page in PAGES), script
