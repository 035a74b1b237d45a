"""The pages of the documentation, as tests read them, and a fresh clone to run their commands in."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "output/README.md",
    ROOT / "hybridgraph/kernels/README.md",
]
# What a fenced block may be called, and what that means for a test.
RUN = "bash run"  # every line is run
MARKED = {
    "bash gpu": "needs a GPU",
    "bash engine": "needs the environment of another engine",
    "bash clone": "how the clone that the others run in is made",
    "bash terminals": "runs in two terminals at once",
    "bash suite": "the tests themselves",
    "python run": "is run",
    "python gpu": "needs a GPU",
}
TEXTS = {"text", "tree", "bibtex", ""}
# Later flags win over those on a page: small enough for a CPU.
SMALL = "--device cpu --prompt-lengths 4,9 --ttft-iterations 2 --p99-iterations 2 --precapture 4-10:2 --max-seq-len 64"
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith(("HYBRIDGRAPH_", "GIT_"))} | {
    "HYBRIDGRAPH_PYTHON": sys.executable,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # `python` is this one
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path) -> list[tuple[str, str]]:
    """What each fenced block of a page is called, and its content."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, info: str) -> list[str]:
    return [content for called, content in fences(page) if called == info]


def commands(page: Path) -> list[str]:
    """The commands of a page that a test runs."""
    return [line for block in blocks(page, RUN) for line in block.splitlines() if line]


def without_fences(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def without_generated(page: Path) -> str:
    return re.sub(r"<!-- begin .*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), "-c", "user.name=n", "-c", "user.email=e", *arguments]
    run = subprocess.run(command, env=ENVIRON, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def fresh_clone(directory: Path) -> Path:
    """Clone this project as it stands here, with changes that are not committed; returns the clone."""
    names = git(ROOT, "ls-files", "-co", "--exclude-standard", "-z").split("\0")[:-1]
    source, clone = directory / "source", directory / "hybridgraph"
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
            (source / name).chmod((ROOT / name).stat().st_mode)
    git(directory, "init", "-q", str(source))
    git(source, "add", ".")
    git(source, "commit", "-qm", "all")
    git(directory, "clone", "-q", str(source), str(clone))
    return clone
