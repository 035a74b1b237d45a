"""Case 3, JIT only: compiled dynamic operations around the Hugging Face model's eager forward.

Held fixed: the model's own forward, launched kernel by kernel. Varied against Case 1: checking,
copying, position bookkeeping and sampling are compiled (``--ops torchscript``, ``inductor`` or ``native``).

    python case3_jit_only.py --ttft-iterations 5 --p99-iterations 100
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE3
from hybridgraph.cli.commands import run_case

if __name__ == "__main__":
    raise SystemExit(run_case(CASE3))
