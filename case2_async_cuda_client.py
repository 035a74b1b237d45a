"""Case 2, the client: measures a running Case 2 generator over its socket.

The clock starts before the request is sent and stops when the id is an int in this process.

    python case2_async_cuda_client.py --socket /tmp/case2/socket
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from hybridgraph.cases import CASE2
from hybridgraph.cli.commands import run_client

if __name__ == "__main__":
    raise SystemExit(run_client(CASE2))
