# shellcheck shell=bash
# Finds a Python for the shell scripts, and hands over to it. Sourced, never run.

# hand_over COMMAND ARGUMENTS...: the first interpreter that is recent enough makes the environment and goes on from there.
hand_over() {
    local root python pythons=(python3.13 python3.12 python3.11 python3.10 python3 python)
    root=$(dirname -- "${BASH_SOURCE[0]}")/../..
    [ -e "$root/.venv/incomplete" ] || pythons=("$root/.venv/bin/python" "${pythons[@]}")
    [ -z "${HYBRIDGRAPH_PYTHON:-}" ] || pythons=("$HYBRIDGRAPH_PYTHON")
    for python in "${pythons[@]}"; do # -I: whatever PYTHONHOME, PYTHONPATH and the current directory hold
        if [ "$("$python" -I -c 'import sys; print(sys.version_info >= (3, 10))' </dev/null 2>/dev/null)" = True ]; then
            exec "$python" -I "$root/hybridgraph/cli/setup.py" "$0" "$@"
        fi
    done
    if [ -n "${HYBRIDGRAPH_PYTHON:-}" ]; then
        echo "error: HYBRIDGRAPH_PYTHON=$HYBRIDGRAPH_PYTHON is no Python 3.10 or newer" >&2
    else
        echo "error: no Python 3.10 or newer was found: install one, or set HYBRIDGRAPH_PYTHON=/path/to/python" >&2
    fi
    exit 2
}
