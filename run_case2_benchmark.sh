#!/usr/bin/env bash
# Case 2, generator and client: CUDA Graphs of exact lengths around plain PyTorch operations.
# Sets .venv up at the first start; every flag is passed on. --help lists them.
source "$(dirname -- "${BASH_SOURCE[0]}")/hybridgraph/scripts/python.sh"
hand_over pair case2 "$@"
