"""The cases of the study: what each holds fixed and what it varies, in one table.

Scripts, result files, table columns and the generator all read this module, so that
a case cannot mean two things in two places.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from hybridgraph.errors import UserError

PAPER_PROMPT_LENGTHS = (10, 50, 100, 150, 200, 250, 300, 350, 400)


class Part(Enum):
    """What only some cases have, and some settings are about."""

    OPS = auto()  # dynamic operations of ours
    GRAPHS = auto()  # a generator with a rolling pool of graphs
    FORWARDS = auto()  # a choice of forwards, each a case of its own
    FUSED = auto()  # the fused forward
    ENGINES = auto()  # a choice of engines that are not ours, each a case of its own


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the study's design.

    ``graphs`` is the policy of the rolling pool: ``"none"``, ``"exact"`` (a graph serves
    its own length only) or ``"padded"`` (a graph serves the lengths up to its own).
    ``ops`` and ``forward`` are ``None`` where the engine under test brings its own.
    """

    key: str
    name: str  # stem of every file the case writes
    title: str  # what it is called
    column: str  # prefix of its columns in the final tables
    script: str  # what a user runs
    generator: str = ""  # where it is a pair: the script that serves it
    engine: str = "hybrid"  # what answers, by its name in sources/registry.py
    ops: str | None = None
    forward: str | None = None
    graphs: str = "none"
    precapture: str = ""
    async_capture: bool = False
    short: str = ""  # heading of its column, where the title is too long for one

    @property
    def label(self) -> str:
        """The heading of its column where there are many."""
        return self.short or self.title

    @property
    def parts(self) -> frozenset[Part]:
        """What this case has, and others have not."""
        found = {
            Part.OPS: self.ops is not None,
            Part.GRAPHS: bool(self.generator),
            Part.FORWARDS: len({case.forward for case in family(self)}) > 1,
            Part.FUSED: self.forward == "fused",
            Part.ENGINES: len({case.engine for case in family(self)}) > 1,
        }
        return frozenset(part for part, has in found.items() if has)


CASE1 = Case(
    key="case1",
    name="case1_baseline",
    title="Baseline",
    column="baseline",
    script="case1_baseline.py",
    engine="generate",
    forward="hf",
)
CASE2 = Case(
    key="case2",
    name="case2_async_cuda",
    title="CUDA Graph",
    column="cuda_graph",
    script="run_case2_benchmark.sh",
    generator="case2_async_cuda_generator.py",
    ops="native",
    forward="hf",
    graphs="exact",
    precapture="1-50",
    async_capture=True,
)
CASE3 = Case(
    key="case3",
    name="case3_jit_only",
    title="JIT only",
    column="jit_only",
    script="case3_jit_only.py",
    ops="torchscript",
    forward="hf",
)
CASE4 = Case(
    key="case4",
    name="case4_jit_cuda",
    title="JIT+CUDA",
    column="jit_cuda",
    script="run_case4_benchmark.sh",
    generator="case4_jit_cuda_generator.py",
    ops="torchscript",
    forward="hf",
    graphs="padded",
    precapture="10-500:10",
    async_capture=True,
)
CASE4_FUSED = Case(
    key="case4_fused",
    name="case4_jit_cuda_fused",
    title="JIT+CUDA fused",
    short="fused",
    column="jit_cuda_fused",
    script="run_case4_benchmark.sh --forward fused",
    generator="case4_jit_cuda_generator.py",
    ops="fused",
    forward="fused",
    graphs="padded",
    precapture="10-500:10",
    async_capture=True,
)
CASE5 = Case(
    key="case5",
    name="case5_tensorrt_llm",
    title="TensorRT-LLM",
    short="TRT-LLM",
    column="tensorrt",
    script="case5_tensorrt_llm.py",
    engine="tensorrt-llm",
)

CASES = (CASE1, CASE2, CASE3, CASE4, CASE4_FUSED, CASE5)

# Engines a user would pick instead. They enter a table only when they were measured.
HF_STATIC = Case(
    key="hf_static",
    name="peer_hf_static",
    title="HF static cache",
    short="HF static",
    column="hf_static",
    script="case5_tensorrt_llm.py --engine hf-static",
    engine="hf-static",
)
HF_COMPILED = Case(
    key="hf_compiled",
    name="peer_hf_compiled",
    title="HF compiled",
    column="hf_compiled",
    script="case5_tensorrt_llm.py --engine hf-compiled",
    engine="hf-static",
)
VLLM = Case(
    key="vllm",
    name="peer_vllm",
    title="vLLM",
    column="vllm",
    script="case5_tensorrt_llm.py --engine vllm",
    engine="vllm",
)
VLLM_FULL = Case(
    key="vllm_full",
    name="peer_vllm_full",
    title="vLLM, full graphs",
    short="vLLM full",
    column="vllm_full",
    script="case5_tensorrt_llm.py --engine vllm-full",
    engine="vllm",
)
SGLANG = Case(
    key="sglang",
    name="peer_sglang",
    title="SGLang",
    column="sglang",
    script="case5_tensorrt_llm.py --engine sglang",
    engine="sglang",
)
SGLANG_FULL = Case(
    key="sglang_full",
    name="peer_sglang_full",
    title="SGLang, full graphs",
    short="SGLang full",
    column="sglang_full",
    script="case5_tensorrt_llm.py --engine sglang-full",
    engine="sglang",
)
TENSORRT_SINGLE = Case(
    key="case5_single",
    name="case5_tensorrt_llm_single",
    title="TensorRT-LLM, single process",
    short="TRT-LLM single",
    column="tensorrt_single",
    script="case5_tensorrt_llm.py --engine tensorrt-llm-single",
    engine="tensorrt-llm",
)

PEERS = (TENSORRT_SINGLE, HF_STATIC, HF_COMPILED, VLLM, VLLM_FULL, SGLANG, SGLANG_FULL)


def family(case: Case) -> tuple[Case, ...]:
    """The cases that one script measures, by its flags: ``case`` and those beside it."""
    script = case.script.split()[0]
    return tuple(each for each in (*CASES, *PEERS) if each.script.split()[0] == script) or (case,)


# What ``case5_tensorrt_llm.py --engine`` measures.
ENGINES = {case.script.partition(" --engine ")[2] or case.engine: case for case in family(CASE5)}


def variant(case: Case, *, forward: str | None = None, engine: str | None = None) -> Case:
    """What flags that were given make of ``case``: with another forward or engine it is a case of its own.

    Raises UserError for a forward that ``case`` has not, and for a flag that contradicts the name of a case.
    """
    if engine is not None and Part.ENGINES in case.parts:
        case = _instead_of(case, ENGINES[engine], f"--engine {engine}")
    if forward in (None, case.forward or "hf"):
        return case
    for other in family(case):
        if other.forward == forward:
            return _instead_of(case, other, f"--forward {forward}")
    raise UserError(f"--forward {forward} is a variant of Case 4 only, and not of {case.script}")


def _instead_of(case: Case, other: Case, flag: str) -> Case:
    if case != other and " --" in case.script:
        raise UserError(f"{flag}: {case.title} was asked for by name")
    return other
