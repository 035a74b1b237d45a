#!/usr/bin/env bash
# The whole study: every case that can run on this machine, each as a process of its own, then the tables.
#
# Sets .venv up at the first start. A case that fails does not end the others; the exit code is non-zero
# if a case failed that should have run. --with-tensorrt-llm adds Case 5; every other flag goes to every case.
source "$(dirname -- "${BASH_SOURCE[0]}")/hybridgraph/scripts/python.sh"
hand_over study "$@"
