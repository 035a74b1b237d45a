"""The synchronous rolling server of Case 2: exact graphs, plain PyTorch operations, no background capture.

A length without a graph is captured while its request waits. Same protocol and pool as
``case2_async_cuda_generator.py``; any client of Case 2 can measure it.

    python cuda_only_rolling_server.py --socket /tmp/cuda-only/socket
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE2
from hybridgraph.cli.commands import serve

if __name__ == "__main__":
    raise SystemExit(serve(CASE2, background=False))
