#!/usr/bin/env bash
# Case 2, generator and client: CUDA Graphs of exact lengths around plain PyTorch operations.
# Sets .venv up at the first start; every flag is passed on. --help lists them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/hybridgraph/scripts/environment.sh"

find_python
WITHOUT=socket check_flags "Case 2: starts its generator, waits until it is ready, measures it and stops it." "$@"
set_up user
exec "$PYTHON" -m hybridgraph pair case2 "$@"
