#!/usr/bin/env bash
# Case 4, generator and client: compiled dynamic operations and CUDA Graphs, padded to a captured length.
# Sets .venv up at the first start; every flag is passed on. --help lists them.
source "$(dirname -- "${BASH_SOURCE[0]}")/hybridgraph/scripts/python.sh"
hand_over pair case4 "$@"
