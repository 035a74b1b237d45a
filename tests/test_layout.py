"""The layers of the package: imports go one way, and the top level keeps its names."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hybridgraph"

TOP_LEVEL = {
    *(
        "README.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "LICENSE",
        "requirements.txt",
        "constraints.txt",
        "pyproject.toml",
        "hybridgraph",
        "docs",
        "tests",
        "output",
    ),
    *("run_complete_benchmark.sh", "run_case2_benchmark.sh", "run_case4_benchmark.sh", "run_tests.sh"),
    *("case1_baseline.py", "case2_async_cuda_generator.py", "case2_async_cuda_client.py", "case3_jit_only.py"),
    *("case4_jit_cuda_generator.py", "case4_jit_cuda_client.py", "case5_tensorrt_llm.py", "generate_final_tables.py"),
    *("cuda_only_rolling_server.py", "graph_generator_rolling_cuda.py"),
}

# Rooms from the bottom up, and what each may import from outside the standard library. A module belongs to the room of
# its first name; the modules at the package's root are the vocabulary, under everything. A room imports itself and
# what is below it, and what those may import from outside.
VOCABULARY = {"cases", "config", "contract", "errors", "places", "roofline", "settings"}
ENTRIES = {"__main__"}
ROOMS: dict[str, set[str]] = {
    "system": {"rich"},
    "machine": {"torch", "pynvml"},
    "models": {"transformers", "accelerate", "huggingface_hub", "safetensors", "gguf"},
    "kernels": {"triton", "cuda"},
    "engine": {"numpy"},
    "serving": {"msgspec"},
    "bench": {"numpy"},
    "sources": {"tensorrt_llm", "vllm", "sglang"},
    "cli": set(),
}
MAX_AT_ROOT = 8
REPORT_ROOMS = {"system", "bench", "report"}
REPORT_MAY_IMPORT = {"numpy", "pandas", "matplotlib", "scipy", "plotly", "markdown_it"}


def module_name(path: Path) -> str:
    """``graphs.pool`` for hybridgraph/graphs/pool.py; the empty name for the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def level_of(module: str) -> int:
    """0 for the vocabulary, then a room after the other."""
    room = module.split(".")[0]
    if room in VOCABULARY:
        return 0
    if room in ENTRIES:
        return len(ROOMS)
    assert room in ROOMS, f"hybridgraph.{module} is in no room: name it in ROOMS"
    return 1 + list(ROOMS).index(room)


def imports_of(source: str) -> Iterator[str]:
    """The dotted name of everything that a source imports, wherever in it: also in functions and for types only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which layer they reach"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    """What ``module`` imports and may not, as sentences."""
    in_report = module.split(".")[0] == "report"
    level = len(ROOMS) if in_report else level_of(module)
    allowed = REPORT_MAY_IMPORT if in_report else set().union(*list(ROOMS.values())[:level])
    found = []
    for name in imports_of(source):
        top, _, inner = name.partition(".")
        room = inner.split(".")[0]
        if top == "hybridgraph" and in_report:
            wrong = room not in VOCABULARY | REPORT_ROOMS
        elif top == "hybridgraph":
            wrong = not inner or level_of(inner) > level
        else:
            wrong = top not in sys.stdlib_module_names and top not in allowed
        if wrong:
            found.append(f"hybridgraph.{module} imports {name}")
    return found


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert violations(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "import torch"),
        ("contract", "from hybridgraph.engine.engine import HybridEngine"),
        ("engine.engine", "def late():\n    from hybridgraph.bench import loop"),
        ("engine.graphs.pool", "import hybridgraph.serving.ipc.messages"),
        ("report.tables", "from torch import nn"),
        ("report.tables", "from hybridgraph.models.loading import load_model"),
        ("engine.ops.native", "import msgspec"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


def test_server_and_client_never_import_each_other() -> None:
    serving = {"serving.server", "serving.queue", "serving.lease"}
    asking = {"serving.client", "serving.shared_client"}
    for side, other in ((serving, asking), (asking, serving)):
        for module in side:
            imported = {name.removeprefix("hybridgraph.") for name in imports_of(MODULES[module].read_text())}
            found = {name for name in imported if any(name == o or name.startswith(f"{o}.") for o in other)}
            assert not found, f"hybridgraph.{module} imports {found}"


def test_plain_modules_and_the_report_load_without_torch() -> None:
    plain = [m for m in MODULES if m.split(".")[0] in {*VOCABULARY, "system", "bench", "report"}]
    assert "report.main" in plain
    imports = "; ".join(f"import hybridgraph.{module}" for module in plain)
    code = f"import sys; {imports}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "False\n"), run.stderr


def test_the_package_itself_loads_nothing() -> None:
    code = "import sys, hybridgraph; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_root_holds_the_vocabulary_only() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert names == VOCABULARY | ENTRIES
    assert len(names) <= MAX_AT_ROOT
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms == {*ROOMS, "report"}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle, in its order; none where there is no circle."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for imported in sorted(graph[module]):
            if circle := visit(imported, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def imported_modules(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in it."""
    names = {name.removeprefix("hybridgraph.") for name in imports_of(path.read_text())}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys()


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle_in({module: imported_modules(path) for module, path in MODULES.items()}) == []


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_a_script_is_its_docstring_and_one_call(script: Path) -> None:
    source = script.read_text()
    body = ast.parse(source).body
    assert len(source.splitlines()) < 40
    described, find_package, called = (node for node in body if not isinstance(node, (ast.Import, ast.ImportFrom)))
    assert isinstance(described, ast.Expr) and isinstance(called, ast.If)
    assert ast.unparse(find_package) == "sys.path.insert(0, str(Path(__file__).resolve().parent))"
    allowed = {"", "pathlib", "hybridgraph.cases", "hybridgraph.cli.commands", "hybridgraph.report.main"}
    assert {name.rpartition(".")[0] for name in imports_of(source)} <= allowed
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert f"python {script.name}" in docstring, "the docstring shows the command"


def test_top_level_names() -> None:
    def holds_files(path: Path) -> bool:
        return path.is_file() or any(child.is_file() for child in path.rglob("*"))

    ignored = {"__pycache__", "build"}
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and holds_files(path)}
    names = {name for name in names - ignored if not name.endswith(".egg-info")}
    assert names - {"output"} == TOP_LEVEL - {"output"}
    assert (ROOT / ".ci" / "run").is_file()
