# shellcheck shell=bash
# Cases one after the other, each a process group of its own, so that one signal ends what it started. Sourced, never run.

failed=()

# take_flag FLAG "$@": FLAGS is the rest of the command line; TAKEN says whether FLAG was in it.
take_flag() {
    local flag=$1 argument
    FLAGS=() TAKEN=no
    shift
    for argument in "$@"; do
        if [ "$argument" = "$flag" ]; then TAKEN=yes; else FLAGS+=("$argument"); fi
    done
}

# No other complete run writes there until this one and its steps have ended: all of them have descriptor 9.
hold_output_directory() {
    { mkdir -p -- "$OUTPUT_DIR" && exec 9>>"$OUTPUT_DIR/.run.lock"; } 2>/dev/null || die "cannot write $OUTPUT_DIR"
    flock -n 9 || die "another complete run is writing to $OUTPUT_DIR"
}

# run_step ARGUMENTS...: Python with these arguments, interruptible; returns its exit code.
run_step() {
    set -m # a process group of its own
    "$PYTHON" "$@" </dev/null &
    set +m
    wait "$!"
}

# stop_case CODE: interrupt the step in flight, wait until it has stopped what it started, exit. A second signal kills it.
stop_case() {
    local step code=0
    step=$(jobs -pr) # asked of the shell: a variable could lag behind the fork by one signal
    trap '[ -z "$step" ] || kill -KILL -- "-$step" 2>/dev/null' INT TERM HUP
    if [ -n "$step" ]; then
        kill -INT -- "-$step" 2>/dev/null
        wait "$step"
        kill -KILL -- "-$step" 2>/dev/null # nothing of its group outlives it
        wait "$step" # again: the code before is that of a second signal, where one came
        code=$?
    fi
    # Steps that end with 130 have said so themselves.
    [ "$code" = 130 ] || say "interrupted: what was measured is kept; --resume goes on from there"
    exit "$1"
}

# run_case NAME ARGUMENTS...
run_case() {
    local name=$1 code=0
    shift
    say "== $name"
    run_step "$@" || code=$?
    case $code in
    0) return ;;
    2) ;; # the case has said why, and written it down where it could
    *) not_run "$name" "failed with exit code $code" ;;
    esac
    failed+=("$name")
    say "$name failed (exit code $code); the other cases go on"
}

skip_case() {
    say "== $1: skipped, $2"
    not_run "$1" "$2"
}

not_run() {
    run_step -m hybridgraph not-run "$1" "$2" --output-dir "$OUTPUT_DIR" || failed+=("$1: reason not recorded")
}

say_and_print_last() {
    local line last=""
    while IFS= read -r line; do
        say "$line"
        last=$line
    done
    printf '%s' "$last"
}

# Told before anything is measured, not only when the case's turn has come.
foresee_tensorrt_llm() {
    [ -n "${HYBRIDGRAPH_TRTLLM_PYTHON:-}" ] || (tensorrt_llm_python) >/dev/null ||
        say "so case5_tensorrt_llm will fail; the other cases are measured"
}

run_tensorrt_llm() {
    local reason
    # In a subshell: a set-up that ends there does not end the run. Its last line says why.
    if reason=$( (set_up_tensorrt_llm) 2>&1 | say_and_print_last); then
        run_case case5_tensorrt_llm "$ROOT/case5_tensorrt_llm.py" "$@"
    else
        failed+=(case5_tensorrt_llm)
        not_run case5_tensorrt_llm "${reason#error: }"
    fi
}

# print_tables FLAGS...: from whatever is in the output directory by now.
print_tables() {
    local json=() flag
    for flag in "$@"; do [ "$flag" != --json ] || json=(--json); done
    run_step "$ROOT/generate_final_tables.py" --output-dir="$OUTPUT_DIR" "${json[@]}" || failed+=(generate_final_tables)
}

finish() {
    [ ${#failed[@]} -gt 0 ] || exit 0
    say "failed: ${failed[*]}"
    exit 1
}
