"""The supervisor: what is started is signalled as a group, and gone with its parent, however that ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkouts import ROOT, alive, wait_for

from hybridgraph.errors import UserError
from hybridgraph.system.locks import Busy, leased, locked
from hybridgraph.system.processes import failure, started

# A parent that starts CHILD and says so; what the child starts leaves its group and its session.
PARENT = f"""
import signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from hybridgraph.system.processes import started
with started([sys.executable, "-c", sys.argv[1]], title="it") as child:
    child.wait()
"""
CHILD = """
import os, pathlib, signal, subprocess, sys, time
for number in DEAF: signal.signal(number, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
for options in ({}, {"start_new_session": True}):
    subprocess.Popen(["bash", "-c", '"$@" & sleep 600', "bash", *sleep], **options)
if not os.fork():
    os.setsid()
    if not os.fork(): time.sleep(600)
    os._exit(0)  # and so becomes nobody's child
(pathlib.Path(os.environ["MARK"]) / "begun").touch()
THEN
"""


def body(deaf: bool = False, then: str = "time.sleep(600)") -> str:
    numbers = "(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)" if deaf else "()"
    return CHILD.replace("DEAF", numbers).replace("THEN", then)


@pytest.fixture
def marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the processes of a test have in their environment."""
    monkeypatch.setenv("MARK", str(tmp_path))
    yield f"MARK={tmp_path}"
    for pid in alive(f"MARK={tmp_path}"):  # of a test that failed
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("deaf", [False, True], ids=["heeds signals", "heeds none"])
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_killed_parent_takes_every_descendant_with_it(tmp_path: Path, marked: str, deaf: bool, stopped: bool) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, body(deaf)])
    wait_for((tmp_path / "begun").exists)
    # Parent, guard, child; two shells with two sleepers each; an orphan.
    wait_for(lambda: len(alive(marked)) == 3 + 2 * 3 + 1, "everybody is there")
    if stopped:
        for pid in alive(marked):
            os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(marked), "nothing is left", timeout_s=5)


def test_a_killed_guard_takes_the_child_with_it(tmp_path: Path, marked: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "import time; time.sleep(600)"])
    wait_for(lambda: len(alive(marked)) == 3)
    (guard,) = (pid for pid, command in alive(marked).items() if "guard.py" in command)
    os.kill(guard, signal.SIGKILL)
    assert parent.wait(timeout=60) == 0
    wait_for(lambda: not alive(marked), "nothing is left")


@pytest.mark.parametrize(("then", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGSEGV)", -11)])
def test_what_a_child_leaves_behind_ends_with_it(tmp_path: Path, marked: str, then: str, code: int) -> None:
    with started([sys.executable, "-c", body(then=then)], title="it") as child:
        assert child.wait() == code
        assert alive(marked) == {}
    assert (tmp_path / "begun").exists()


def test_a_stopped_child_heeds_the_signal_that_ends_it(marked: str) -> None:
    with started([sys.executable, "-c", "import time; time.sleep(600)"], title="it") as child:
        wait_for(lambda: len(alive(marked)) == 2)
        child.send(signal.SIGSTOP)
        assert child.end(signal.SIGTERM, patience_s=600) == -signal.SIGTERM
    assert alive(marked) == {}


def test_a_child_that_does_not_end_in_time_is_killed_and_that_is_said(
    tmp_path: Path, marked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with started([sys.executable, "-c", body(deaf=True)], title="it", patience_s=0.2):
        wait_for((tmp_path / "begun").exists)
    assert alive(marked) == {}
    assert capsys.readouterr().err == "it did not end within 0.2 s: it is killed\n"


def test_a_child_starts_with_the_signals_of_its_parent() -> None:
    tell = "import signal; print(*(signal.getsignal(n) for n in (15, 1, 10)), signal.pthread_sigmask(0, []), sep='|')"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with started([sys.executable, "-c", tell], title="it", stdout=subprocess.PIPE) as child:
            said = child.stdout.read().split("|")
    finally:
        signal.signal(signal.SIGHUP, before)
    default, ignored = str(int(signal.SIG_DFL)), str(int(signal.SIG_IGN))
    assert said == [default, ignored, default, "set()\n"], "as they were, and none blocked"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (7, "failed with exit code 7"),
        (-9, "was ended by SIGKILL: most often the machine's memory is full"),
        (-11, "was ended by SIGSEGV: see its messages above"),
        (-40, "was ended by signal 40: see its messages above"),
    ],
)
def test_a_failure_is_told_by_what_it_was(code: int, said: str) -> None:
    assert failure(code) == said


def test_what_cannot_be_started_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"/nowhere cannot be started"), started(["/nowhere"], title="it"):
        pass
    script = tmp_path / "script"
    script.write_bytes(b"\0")
    script.chmod(0o755)
    with started([str(script)], title="it") as child:
        assert child.wait() == 2
    assert capfd.readouterr().err == f"error: {script} cannot be started: Exec format error\n"


HOLD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from hybridgraph.system.locks import locked
with locked(Path(sys.argv[1]), busy="busy"): pass
"""


def test_what_a_process_starts_holds_its_locks(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold = [sys.executable, "-c", HOLD, str(path)]
    with locked(path, busy="busy"):
        with started(hold, title="it") as child:
            assert child.wait() == 0, "it is held for the child"
        assert subprocess.run(hold, capture_output=True).returncode == 1, "and for nobody else"
        with pytest.raises(Busy, match="mine"), locked(path, busy="mine"):
            pass
    assert subprocess.run(hold).returncode == 0


def test_a_lock_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UserError, match="is no file: move it away"), locked(tmp_path / "lock", busy="busy"):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "link", busy="busy"):
        pass
    assert not (tmp_path / "elsewhere").exists()


LEASE = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from hybridgraph.system import locks
if "other" in sys.argv: locks._boot = lambda: "of another kernel"
if "unlocked" in sys.argv: locks.fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented"))
try:
    with locks.leased(Path(sys.argv[1]), busy="{{}} has it"):
        print("has it", flush=True)
        sys.stdin.readline()
except locks.Busy as error:
    print(error)
"""


@pytest.mark.parametrize("where", [(), ("other", "unlocked"), ("unlocked",)], ids=str)
def test_a_lease_holds_beyond_the_reach_of_locks(tmp_path: Path, where: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", LEASE, str(tmp_path / "lock"), *where]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
    if where:  # who asks shares no lock with the holder
        command.append("unlocked")
    asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert f"process {holder.pid} on" in asked.stdout and "has it" in asked.stdout, asked.stderr
    holder.kill()
    holder.wait()
    after = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert after.stdout == "has it\n", "one that is gone has nothing any more"
    assert (tmp_path / "lock").read_text() == ""


def test_a_lease_that_is_held_here_is_not_given_twice(tmp_path: Path) -> None:
    path, told = tmp_path / "lock", f"process {os.getpid()} on"
    with leased(path, busy="{}"), pytest.raises(Busy, match=told), leased(path, busy="{}"):
        pass
    assert path.read_text() == ""
