"""Case 4, the client: measures a running Case 4 generator over its socket.

The clock starts before the request is sent and stops when the id is an int in this process.

    python case4_jit_cuda_client.py --socket /tmp/case4/socket
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE4
from hybridgraph.cli.commands import run_client

if __name__ == "__main__":
    raise SystemExit(run_client(CASE4))
