"""The processes that a measuring one starts: no print of theirs stops them, and they end with it in any case."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridgraph.serving.pair import generator_process
from hybridgraph.sources import supervised

ROOT = Path(__file__).resolve().parent.parent

CHATTY = r"""
import pathlib, sys, time
sys.stdout.buffer.write(b"\xff\nlistening\n" + b"a line\n" * 30_000)
sys.stdout.flush()
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
DEAF = """
import os, pathlib, signal, sys, time
directory = pathlib.Path(sys.argv[1])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: (directory / "asked").touch())
print("listening", flush=True)
(directory / "pid.new").write_text(str(os.getpid()))
(directory / "pid.new").rename(directory / "pid")
until = time.monotonic() + 60
while time.monotonic() < until:
    time.sleep(1)
"""
PARENTS = {
    "pair": """
import sys, time
from hybridgraph.serving.pair import generator_process
from hybridgraph.system.signals import stop_signals_raise
with stop_signals_raise(), generator_process("it", sys.argv[1:]):
    time.sleep(60)
""",
    "supervised": """
import sys
from hybridgraph.system.signals import stop_signals_raise
from hybridgraph.sources.supervised import Deadlines, run_supervised
with stop_signals_raise():
    run_supervised([sys.executable, *sys.argv[1:]], title="it", deadlines=Deadlines())
""",
}


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def script(directory: Path, text: str) -> str:
    path = directory / "child.py"
    path.write_text(text)
    return str(path)


def test_what_a_generator_prints_never_stops_it(tmp_path: Path) -> None:
    went_on = tmp_path / "went_on"
    with generator_process("it", [script(tmp_path, CHATTY), str(went_on)]):
        wait_for(went_on.exists)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("parent", PARENTS)
def test_a_further_signal_ends_a_child_that_heeds_none(parent: str, number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENTS[parent], script(tmp_path, DEAF), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for((tmp_path / "pid").exists)
            child = int((tmp_path / "pid").read_text())
            process.send_signal(number)
            wait_for((tmp_path / "asked").exists)
            process.send_signal(number)
            process.wait(20)
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)
        finally:
            process.kill()


@pytest.mark.parametrize("watched", [True, False])
def test_who_waits_for_an_engine_on_a_terminal_is_told(
    watched: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervised, "_SAID_EVERY_S", 0.3)
    monkeypatch.setattr(supervised, "on_terminal", lambda: watched)
    command = [sys.executable, "-c", "import time; time.sleep(1.5)"]
    assert supervised.run_supervised(command, title="Engine", deadlines=supervised.Deadlines()) == 0
    lines = capsys.readouterr().err.splitlines()
    assert bool(lines) == watched
    assert all(line.startswith("Engine is starting: ") for line in lines)
