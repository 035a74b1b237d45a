"""Case 5 and the engines a user would pick in its place: which, in which environment, and how they are opened.

Nothing here or below may import more than layer 0 before an engine is chosen: Case 5 runs in
TensorRT-LLM's environment, whose torch and transformers are not ours.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from hybridgraph.cases import ENGINES, HF_COMPILED, HF_STATIC, SGLANG, SGLANG_FULL, VLLM, VLLM_FULL, Case, variant
from hybridgraph.config import Config
from hybridgraph.contract import TokenSource
from hybridgraph.errors import UserError
from hybridgraph.machine.driver import find_gpu
from hybridgraph.sources.supervised import Deadlines, SupervisedSource, is_child, run_supervised
from hybridgraph.system.console import IMPORTING, progress_bars

ROOT = Path(__file__).resolve().parents[2]
TENSORRT_PYTHON = "HYBRIDGRAPH_TRTLLM_PYTHON"
OUR_OWN = (HF_STATIC, HF_COMPILED)  # of this environment
OF_VLLM = (VLLM, VLLM_FULL)
OF_SGLANG = (SGLANG, SGLANG_FULL)


def case_of(config: Config) -> Case:
    """The case that ``--engine`` measures."""
    return variant(ENGINES[config.engine], config.forward)


def measures_here(case: Case) -> bool:
    """Whether this process is the one to measure: for an engine of our own environment, and inside another's child."""
    return case in OUR_OWN or is_child()


def run_in_child(config: Config, case: Case) -> int:
    """Measure in a child process of the engine's own environment; returns its exit code, or raises UserError."""
    deadlines = Deadlines.from_environment()
    python = _python_of(case)
    find_gpu(config.device, case.title)
    command = [python, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
    return run_supervised(command, title=case.title, deadlines=deadlines)


def open_source(config: Config, case: Case) -> TokenSource:
    """The engine of ``case``, loaded and ready, in this process."""
    if case in OUR_OWN:
        with progress_bars(ticking=True) as bars:
            bars(IMPORTING, 0, 1)
            from hybridgraph.sources.hf_static import open_hf_static

            return open_hf_static(config, case, bars)
    return SupervisedSource(lambda: _open_foreign(config, case))


def _open_foreign(config: Config, case: Case) -> TokenSource:
    if case in OF_VLLM:
        from hybridgraph.sources.vllm import open_vllm

        return open_vllm(config, case)
    if case in OF_SGLANG:
        from hybridgraph.sources.sglang import open_sglang

        return open_sglang(config, case)
    from hybridgraph.sources.tensorrt_llm import open_tensorrt_llm

    return open_tensorrt_llm(config, case)


def _python_of(case: Case) -> str:
    if case in OF_VLLM:
        return _python_with("vllm", "vLLM", "HYBRIDGRAPH_VLLM_PYTHON")
    if case in OF_SGLANG:
        return _python_with("sglang", "SGLang", "HYBRIDGRAPH_SGLANG_PYTHON")
    return _tensorrt_python()


def _tensorrt_python() -> str:
    own = ROOT / ".venv-trtllm"
    if os.environ.get(TENSORRT_PYTHON):
        return _interpreter(TENSORRT_PYTHON)
    if (own / "bin/python").exists() and not (own / "incomplete").exists():
        return str(own / "bin/python")
    raise UserError(
        "TensorRT-LLM has no environment here: ./run_complete_benchmark.sh --with-tensorrt-llm makes one, "
        f"or {TENSORRT_PYTHON} names an interpreter that has it"
    )


def _python_with(package: str, name: str, variable: str) -> str:
    if os.environ.get(variable):
        return _interpreter(variable)
    if importlib.util.find_spec(package) is not None:
        return sys.executable
    raise UserError(f"{name} is not installed in this environment: {variable} names an interpreter that has it")


def _interpreter(variable: str) -> str:
    path = os.environ[variable]
    if not (Path(path).is_file() and os.access(path, os.X_OK)):
        raise UserError(f"{variable}={path} is no Python interpreter")
    return path
