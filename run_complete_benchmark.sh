#!/usr/bin/env bash
# The whole study: every case that can run on this machine, each as a process of its own, then the tables.
#
# Sets .venv up at the first start. A case that fails does not end the others; the exit code is non-zero
# if a case failed that should have run. --with-tensorrt-llm adds Case 5; every other flag goes to every case.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/hybridgraph/scripts/environment.sh"
source "$ROOT/hybridgraph/scripts/cases.sh"

about="Measures every case of the study on this machine, then prints the tables.
--with-tensorrt-llm adds Case 5, in an environment of its own; every other flag goes to every case."

take_flag --with-tensorrt-llm "$@"
find_python
WITHOUT="forward socket engine" check_flags "$about" "${FLAGS[@]}"
set_up user
hold_output_directory
[ "$TAKEN" = no ] || foresee_tensorrt_llm

trap '' PIPE # whoever reads the messages may have seen enough: the measurement goes on
trap 'stop_case 130' INT
trap 'stop_case 143' TERM
trap 'stop_case 129' HUP

run_step -m hybridgraph new-run "${FLAGS[@]}" || exit
run_case case1_baseline "$ROOT/case1_baseline.py" "${FLAGS[@]}"
run_case case2_async_cuda -m hybridgraph pair case2 "${FLAGS[@]}"
run_case case3_jit_only "$ROOT/case3_jit_only.py" "${FLAGS[@]}"
run_case case4_jit_cuda -m hybridgraph pair case4 "${FLAGS[@]}"
run_case case4_jit_cuda_fused -m hybridgraph pair case4 "${FLAGS[@]}" --forward fused
if [ "$TAKEN" = yes ]; then
    run_tensorrt_llm "${FLAGS[@]}"
else
    skip_case case5_tensorrt_llm "not asked for: add --with-tensorrt-llm"
fi
print_tables "${FLAGS[@]}"
finish
