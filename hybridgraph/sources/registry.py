"""Every engine that can be measured: what opens it, and in which Python environment.

A new engine is a module of this folder, whose opener takes a configuration, a case and a callback for its progress, and
an entry in ENGINES; a case names the entry (``Case.engine``). Nothing here may import torch: the engines of other
environments have one of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybridgraph.cases import Case
from hybridgraph.config import EngineSettings
from hybridgraph.contract import TokenSource
from hybridgraph.errors import UserError
from hybridgraph.machine.driver import find_gpu
from hybridgraph.sources.supervised import Deadlines, SupervisedSource, is_child, run_supervised
from hybridgraph.system.console import OnProgress, no_op

ROOT = Path(__file__).resolve().parents[2]

Opener = Callable[[EngineSettings, Case, OnProgress], TokenSource]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The Python environment that an engine needs, where that is not this one.

    ``variable`` names an interpreter of it. Without that it is the one in the directory ``made``, or, where none is
    made, this one, should it have ``package``.
    """

    title: str
    variable: str
    package: str = ""
    made: str = ""

    def python(self) -> str:
        """The interpreter; raises UserError where there is none."""
        if path := os.environ.get(self.variable):
            if not (Path(path).is_file() and os.access(path, os.X_OK)):
                raise UserError(f"{self.variable}={path} is no Python interpreter")
            return path
        if self.made:
            return self._made_python()
        if importlib.util.find_spec(self.package) is None:
            raise UserError(
                f"{self.title} is not installed in this environment: {self.variable} names an interpreter that has it"
            )
        return sys.executable

    def _made_python(self) -> str:
        directory = ROOT / self.made
        if (directory / "incomplete").exists() or not (directory / "bin/python").exists():
            raise UserError(
                f"{self.title} has no environment here: ./run_complete_benchmark.sh --with-tensorrt-llm makes one, "
                f"or {self.variable} names an interpreter that has it"
            )
        return str(directory / "bin/python")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One entry. ``opener`` is ``module:function`` in this folder, imported where it is measured and nowhere else."""

    opener: str
    environment: Environment | None = None

    def load_opener(self) -> Opener:
        module, _, function = self.opener.partition(":")
        opener: Opener = getattr(importlib.import_module(f"hybridgraph.sources.{module}"), function)
        return opener


ENGINES = {
    "generate": Engine(opener="huggingface:open_generate"),
    "hybrid": Engine(opener="build:open_engine"),
    "hf-static": Engine(opener="hf_static:open_hf_static"),
    "tensorrt-llm": Engine(
        opener="tensorrt_llm:open_tensorrt_llm",
        environment=Environment(title="TensorRT-LLM", variable="HYBRIDGRAPH_TRTLLM_PYTHON", made=".venv-trtllm"),
    ),
    "vllm": Engine(
        opener="vllm:open_vllm",
        environment=Environment(title="vLLM", variable="HYBRIDGRAPH_VLLM_PYTHON", package="vllm"),
    ),
    "sglang": Engine(
        opener="sglang:open_sglang",
        environment=Environment(title="SGLang", variable="HYBRIDGRAPH_SGLANG_PYTHON", package="sglang"),
    ),
}


def measures_here(case: Case) -> bool:
    """Whether this process is the one to measure: for an engine of this environment, and inside another's child."""
    return ENGINES[case.engine].environment is None or is_child()


def run_in_child(config: EngineSettings, case: Case) -> int:
    """Run this very command again in the engine's environment; returns its exit code, or raises UserError."""
    environment = ENGINES[case.engine].environment
    assert environment is not None
    deadlines = Deadlines.from_environment()
    python = environment.python()
    find_gpu(config.device, case.title)
    command = [python, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
    return run_supervised(command, title=case.title, deadlines=deadlines)


def open_source(config: EngineSettings, case: Case, progress: OnProgress = no_op) -> TokenSource:
    """The engine of ``case``, loaded and ready, in this process; raises UserError where it cannot be."""
    engine = ENGINES[case.engine]
    if engine.environment is None:
        return engine.load_opener()(config, case, progress)
    return SupervisedSource(lambda: engine.load_opener()(config, case, progress))
