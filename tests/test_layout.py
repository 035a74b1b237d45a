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

# A module belongs to the layer of the longest name here that it starts with; one without a layer is a failure.
LAYERS: dict[str, int] = {
    name: layer
    for layer, names in enumerate(
        (
            "errors files output progress signals config cases records prompts shapes provenance"
            " stats roofline rows run_record results summary",
            "nvml environment hub model buffers timing ops options forward graphs engine",
            "ipc server client shared_client lending waiting",
            "runner resume sources build pair main",
        )
    )
    for name in names.split()
}
# What a layer may import from outside the standard library, besides what the layers below it may.
THIRD_PARTY = (
    {"numpy", "rich"},
    {"torch", "transformers", "accelerate", "huggingface_hub", "safetensors", "gguf", "triton", "cuda", "pynvml"},
    {"msgspec"},
    {"tensorrt_llm", "vllm", "sglang"},
)
REPORT_MAY_IMPORT = {"numpy", "pandas", "matplotlib"}


def module_name(path: Path) -> str:
    """``graphs.pool`` for hybridgraph/graphs/pool.py; the empty name for the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def layer_of(module: str) -> int:
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    for name in names:
        if name in LAYERS:
            return LAYERS[name]
    raise AssertionError(f"hybridgraph.{module} has no layer: name it in LAYERS")


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
    layer = 0 if in_report else layer_of(module)
    allowed = REPORT_MAY_IMPORT if in_report else set().union(*THIRD_PARTY[: layer + 1])
    found = []
    for name in imports_of(source):
        top, _, inner = name.partition(".")
        if top == "hybridgraph":
            wrong = not (in_report and inner.startswith("report")) and (not inner or layer_of(inner) > layer)
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
        ("stats", "import torch"),
        ("records", "from hybridgraph.engine import HybridEngine"),
        ("engine", "def late():\n    from hybridgraph import runner"),
        ("graphs.pool", "import hybridgraph.ipc.messages"),
        ("report.tables", "from torch import nn"),
        ("report.tables", "from hybridgraph.model import load_model"),
        ("ops.native", "import msgspec"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


def test_server_and_client_never_import_each_other() -> None:
    serving, asking = {"server", "waiting", "lending"}, {"client", "shared_client"}
    for side, other in ((serving, asking), (asking, serving)):
        for module in side & MODULES.keys():
            imported = {
                name.split(".")[1] for name in imports_of(MODULES[module].read_text()) if "hybridgraph." in name
            }
            assert not imported & other, f"hybridgraph.{module} imports {imported & other}"


def test_plain_modules_and_the_report_load_without_torch() -> None:
    plain = [m for m in MODULES if m.split(".")[0] == "report" or layer_of(m) == 0]
    assert "report.main" in plain
    code = "import importlib, sys\nsys.modules['torch'] = None\nfor name in sys.argv[1:]: importlib.import_module(name)"
    names = [f"hybridgraph.{module}" for module in plain]
    run = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_package_itself_loads_nothing() -> None:
    code = "import sys, hybridgraph; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_a_script_is_its_docstring_and_one_call(script: Path) -> None:
    source = script.read_text()
    body = ast.parse(source).body
    assert len(source.splitlines()) < 40
    assert [type(node) for node in body if not isinstance(node, ast.ImportFrom)] == [ast.Expr, ast.If]
    allowed = {"hybridgraph.cases", "hybridgraph.main", "hybridgraph.report.main"}
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
