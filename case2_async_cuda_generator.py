"""Case 2, the generator: rolling CUDA Graphs of exact lengths, plain PyTorch for everything dynamic.

Holds the model and a rolling pool of 50 graphs (lengths 1-50 before serving), captures
further lengths in the background, and answers clients on a Unix socket.

    python case2_async_cuda_generator.py --socket /tmp/case2/socket
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE2
from hybridgraph.cli.commands import serve

if __name__ == "__main__":
    raise SystemExit(serve(CASE2))
