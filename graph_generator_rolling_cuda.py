"""The synchronous rolling server of Case 4: padded graphs, compiled operations, no background capture.

Same protocol and pool as ``case4_jit_cuda_generator.py``; any client of Case 4 can measure it.

    python graph_generator_rolling_cuda.py --socket /tmp/jit-cuda/socket
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE4
from hybridgraph.cli.commands import serve

if __name__ == "__main__":
    raise SystemExit(serve(CASE4, background=False))
