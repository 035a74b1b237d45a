"""Lint, types and tests, in the same environment as the benchmark plus what the tests need.

./run_tests.sh                      everything that runs without a GPU
./run_tests.sh -m gpu               the tests that need one
./run_tests.sh tests/test_ops.py    any arguments of pytest
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    os.environ.pop("PYTHONSAFEPATH", None)  # pytest finds the package where it is started
    # All of them in several processes; a few are quicker in one.
    arguments = arguments or ["--numprocesses", "auto", "--maxprocesses", "4"]
    tests = ("pytest", "--timeout", "300", "-m", "not gpu", *arguments)
    try:
        codes = [subprocess.run([sys.executable, "-m", *check]).returncode for check in (*CHECKS, tests)]
    except KeyboardInterrupt:  # pytest has said so
        return 130
    return int(any(codes))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
