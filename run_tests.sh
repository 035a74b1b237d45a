#!/usr/bin/env bash
# Lint, types and tests, in the same environment as the benchmark plus what the tests need. --help tells more.
source "$(dirname -- "${BASH_SOURCE[0]}")/hybridgraph/scripts/python.sh"
hand_over tests "$@"
