#!/usr/bin/env bash
# Case 4, generator and client: compiled dynamic operations and CUDA Graphs, padded to a captured length.
# Sets .venv up at the first start; every flag is passed on. --help lists them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/hybridgraph/scripts/environment.sh"

find_python
WITHOUT=socket check_flags "Case 4: starts its generator, waits until it is ready, measures it and stops it." "$@"
set_up user
exec "$PYTHON" -m hybridgraph pair case4 "$@"
