"""Case 4, the generator: compiled dynamic operations and rolling CUDA Graphs, the hybrid.

Varied against Case 2: preprocessing is compiled and pads to the nearest captured length (10, 20,
... 500 before serving), so that a prompt of up to 500 tokens never waits for a capture.
``--forward fused`` captures the JIT-fused forward over the same weights.

    python case4_jit_cuda_generator.py --socket /tmp/case4/socket
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE4
from hybridgraph.cli.commands import serve

if __name__ == "__main__":
    raise SystemExit(serve(CASE4))
