"""A generator process that a measuring one starts for itself, and ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hybridgraph.client import RequestFailed
from hybridgraph.errors import AlreadyTold, UserError
from hybridgraph.progress import say
from hybridgraph.signals import end_with_parent

ROOT = Path(__file__).resolve().parent.parent
STOP_S = 30.0  # what a generator is given to end by itself


@contextmanager
def generator_process(script: str, argv: Sequence[str]) -> Iterator[None]:
    """A generator process of our own, listening when the block starts and gone when it ends."""
    command = [sys.executable, str(ROOT / script), *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent) as process:
        try:
            assert process.stdout is not None
            if not any(line.startswith("listening") for line in process.stdout):  # whatever else is printed there
                code = process.wait()
                ended = AlreadyTold if code == 2 else UserError
                raise ended(f"the generator {script} ended before it listened (exit code {code})")
            yield
        except RequestFailed as failure:
            if failure.kind != "start":
                raise
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)  # it says why on this terminal, and ends
            raise AlreadyTold(failure.reason) from None
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                say(f"{script} did not end within {STOP_S:g} s: it is killed")
                process.kill()
