"""A generator process that a measuring one starts for itself, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread

from hybridgraph.errors import AlreadyTold, UserError
from hybridgraph.serving.client import GeneratorLost, RequestFailed
from hybridgraph.serving.ipc.address import fresh_socket_path, remove_left_behind, require_short
from hybridgraph.system.console import say
from hybridgraph.system.signals import end_with_parent, how_killed

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 30.0  # what a generator is given to end by itself


@contextmanager
def generator_process(script: str, argv: Sequence[str]) -> Iterator[Path]:
    """A generator process of our own: where it listens. It is gone when the block ends.

    Raises UserError where it did not come to that, or was killed within the block.
    """
    path = fresh_socket_path()
    require_short(path)
    command = [sys.executable, str(ROOT / script), *argv, "--socket", str(path)]
    tied = partial(end_with_parent, os.getpid())
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace", preexec_fn=tied) as process:
        try:
            _await_listening(process, script)
            output, process.stdout = process.stdout, None  # read to its end: a full pipe would stop the generator
            Thread(target=deque, args=(output, 0), daemon=True).start()
            yield path
        except RequestFailed as failure:
            if failure.kind != "start":
                raise
            _wait(process, STOP_S)  # it says why on this terminal, and ends
            raise AlreadyTold(failure.reason) from None
        except GeneratorLost:
            if (code := _wait(process, STOP_S)) is not None and code < 0:
                raise UserError(f"the generator {script} {how_killed(code)}") from None
            raise
        finally:
            try:
                process.terminate()
                if _wait(process, STOP_S) is None:
                    say(f"{script} did not end within {STOP_S:g} s: it is killed")
            finally:  # at once where a second signal comes
                process.kill()
                process.wait()
                remove_left_behind(path)


def _await_listening(process: subprocess.Popen[str], script: str) -> None:
    assert process.stdout is not None
    if not any(line.startswith("listening") for line in process.stdout):  # whatever else is printed there
        code = process.wait()
        ended = AlreadyTold if code == 2 else UserError
        raise ended(f"the generator {script} ended before it listened (exit code {code})")


def _wait(process: subprocess.Popen[str], timeout_s: float) -> int | None:
    """Its exit code; None where it has not ended in time."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout_s)
    return None
