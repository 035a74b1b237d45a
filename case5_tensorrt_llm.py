"""Case 5: the real TensorRT-LLM, in a Python environment of its own, on the same ids and the same clock.

Runs itself again under ``HYBRIDGRAPH_TRTLLM_PYTHON`` or ``.venv-trtllm``. ``--engine`` measures a
peer in its place: ``hf-static``, ``hf-compiled`` (Hugging Face, static cache, compiled), ``vllm``, ``vllm-full``,
``sglang`` or ``sglang-full``.

    python case5_tensorrt_llm.py --ttft-iterations 5 --p99-iterations 100
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE5
from hybridgraph.cli.commands import run_case

if __name__ == "__main__":
    raise SystemExit(run_case(CASE5))
