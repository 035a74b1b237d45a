"""A generator's messages: whoever reads them, or does not, serving goes on; and no flood of clients fills them."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from toy_clients import TIMEOUT_S, assert_serves, toy

from hybridgraph.serving.ipc.address import fresh_socket_path
from hybridgraph.serving.log import MAX_LINES, WINDOW_S, BoundedLog
from hybridgraph.system.unblocked import UnblockedStream, unblocked


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe in which there is no room for a single byte."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)  # as its writers have it
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def misbehave(path: Path, times: int) -> None:
    """So many clients that the generator has something to say about."""
    for number in range(times):
        with socket.socket(socket.AF_UNIX) as bad:
            bad.connect(str(path))
            bad.sendall(b"GET /%d HTTP/1.1\r\n\r\n" % number)
            bad.recv(4096)


def test_generator_whose_stderr_nobody_reads_serves_and_heeds_sigterm() -> None:
    with full_pipe() as (_, writing), toy(stderr=writing) as generator:
        misbehave(generator.path, 600)
        assert_serves(generator.path)
        assert generator.end()[0] == 0


def test_generator_whose_stderr_is_read_again_tells_what_it_had_to_say() -> None:
    with full_pipe() as (reading, writing), toy(stderr=writing) as generator:
        misbehave(generator.path, 1)
        assert_serves(generator.path)
        told = b""
        while b"a client was dropped" not in told:
            told += os.read(reading, 4096)
        assert generator.end()[0] == 0


CTRL_S = b"\x13"


def test_generator_whose_terminal_is_stopped_serves_and_heeds_sigterm() -> None:
    terminal, end = pty.openpty()
    with toy("--start-s", "1", stderr=end, ready=False) as generator:
        os.write(terminal, CTRL_S)
        misbehave(generator.path, 3)
        generator.wait_for("ready")
        misbehave(generator.path, 3)
        assert_serves(generator.path)
        assert generator.end()[0] == 0
    os.close(terminal)
    os.close(end)


def test_generator_whose_terminal_is_stopped_before_it_is_ready_becomes_ready() -> None:
    """It has yet to say so, on the same terminal."""
    terminal, end = pty.openpty()
    path = fresh_socket_path()
    command = [sys.executable, str(Path(__file__).with_name("toy_generator.py")), str(path), "--start-s", "1"]
    root = str(Path(__file__).resolve().parents[1])
    with subprocess.Popen(command, stdout=end, stderr=end, env=os.environ | {"PYTHONPATH": root}) as process:
        try:
            assert os.read(terminal, 100).startswith(b"listening")
            os.write(terminal, CTRL_S)
            assert_serves(path)
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
            os.close(terminal)
            os.close(end)


def test_flood_of_bad_clients_writes_a_bounded_number_of_lines() -> None:
    with toy() as generator:
        misbehave(generator.path, 1000)
        code, _, log = generator.end()
        lines = log.splitlines()
        assert code == 0 and 1 < len(lines) <= 2 * MAX_LINES + 1
        assert "more like it" in log, "what is not written is counted"


def test_log_counts_what_repeats_and_what_is_too_much() -> None:
    lines: list[str] = []
    now_s = [0.0]
    log = BoundedLog(lines.append, clock=lambda: now_s[0])
    for number in range(3 * MAX_LINES):
        for _ in range(5):
            log(f"line {number}")
    assert lines == [f"line {number}" for number in range(MAX_LINES)]
    now_s[0] = WINDOW_S
    log("line 0")
    told = lines[MAX_LINES:]
    assert told[:1] == ["line 0 (4 more like it)"] and len(told) == MAX_LINES + 2
    assert told[-2:] == [f"{2 * MAX_LINES * 5} further messages were left out", "line 0"]
    log.close()
    assert len(lines) == 2 * MAX_LINES + 2, "nothing was left to tell"


def test_stream_writes_what_it_is_given_in_its_order(tmp_path: Path) -> None:
    with (tmp_path / "written").open("w") as file:
        stream = UnblockedStream(file)
        threads = [threading.Thread(target=lambda: [stream.write("a line\n") for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream.write("the last, ä\n")
        assert stream.drain()
    assert (tmp_path / "written").read_text() == "a line\n" * 200 + "the last, ä\n"


def test_stream_without_a_reader_keeps_so_much_and_tells_what_it_left_out() -> None:
    with full_pipe() as (reading, writing), closing(os.fdopen(os.dup(writing), "w")) as file:
        stream = UnblockedStream(file, max_kept_bytes=1000)
        for number in range(1000):
            stream.write(f"{number:9d}\n")
        assert not stream.drain(0.1)
        os.read(reading, 1 << 16)
        written = os.read(reading, 1 << 16)
        while stream._num_bytes:
            time.sleep(0.01)
        stream.write("on\n")
        assert stream.drain(TIMEOUT_S)
        written += os.read(reading, 1 << 16)
        assert written.startswith(b"        0\n        1\n")
        assert written.endswith(b"        99\n(900 lines were left out: nobody read them)\non\n"[1:])


def test_stream_whose_reader_has_gone_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:
        stream = UnblockedStream(file)
        assert stream.write("into nowhere\n") == 13
        assert stream.drain(TIMEOUT_S)


def test_stream_of_no_file_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", text := io.StringIO())
    with unblocked("stderr"):
        assert sys.stderr is text
    monkeypatch.setattr(sys, "stderr", None)
    with unblocked("stderr"):
        assert sys.stderr is None


def test_pipe_that_is_full_stays_unblocked_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with full_pipe() as (_, writing), closing(os.fdopen(os.dup(writing), "w")) as file:
        monkeypatch.setattr(sys, "stderr", file)
        with unblocked("stderr"):
            sys.stderr.write("first\n")
        assert isinstance(sys.stderr, UnblockedStream)
        sys.stderr.write("and what is said afterwards waits for nobody either\n")
