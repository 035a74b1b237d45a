#!/usr/bin/env bash
# Lint, types and tests, in the same environment as the benchmark plus what the tests need.
#
#   ./run_tests.sh                      everything that runs without a GPU
#   ./run_tests.sh -m gpu               the tests that need one
#   ./run_tests.sh tests/test_ops.py    any arguments of pytest
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/hybridgraph/scripts/environment.sh"

case "${1:-}" in -h | --help)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit
    ;;
esac
find_python
set_up test
cd "$ROOT" || exit
unset PYTHONSAFEPATH # tests start scripts as users do
[ $# -gt 0 ] || set -- --numprocesses auto --maxprocesses 4 # for all of them; a few are quicker in one process
failed=0
"$PYTHON" -m ruff check . || failed=1
"$PYTHON" -m ruff format --check . || failed=1
"$PYTHON" -m mypy || failed=1
"$PYTHON" -m pytest --timeout 300 -m "not gpu" "$@" || failed=1
exit "$failed"
