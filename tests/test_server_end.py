"""How a generator ends, by signals, failures and kills; and how its clients hear of it."""

from __future__ import annotations

import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from toy_clients import SCRIPT, TIMEOUT_S, ask, assert_serves, channel_to, client_of, generate, receive_until, toy
from toy_generator import LONG_CALL, SLOW, ToyEngine, toy_answer

from hybridgraph.contract import Request
from hybridgraph.errors import UserError
from hybridgraph.serving.client import TIMEOUT_S as CLIENT_TIMEOUT_S
from hybridgraph.serving.client import GeneratorClient, GeneratorSilent, RequestFailed
from hybridgraph.serving.heartbeat import Heartbeat
from hybridgraph.serving.ipc.address import listen
from hybridgraph.serving.ipc.channel import ClientChannel
from hybridgraph.serving.ipc.messages import HELLO, Failed, Queued
from hybridgraph.serving.server import Server, Timeouts, serve
from hybridgraph.system.console import OnProgress
from hybridgraph.system.signals import StopSignals


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except UserError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_generator_that_is_killed_is_told_by_every_client_at_once() -> None:
    with toy() as generator, client_of(generator.path) as asking, client_of(generator.path) as idle:
        first = threading.Event()
        request = Request(prompt_ids=[SLOW], max_new_tokens=200)
        thread, errors = in_background(lambda: asking.stream(request, lambda _: first.set()))
        assert first.wait(TIMEOUT_S)
        generator.process.kill()
        killed_s = time.monotonic()
        thread.join(TIMEOUT_S)
        with pytest.raises(UserError) as failure:
            ask(idle, [1])
        assert time.monotonic() - killed_s < 5.0
        assert [str(e) for e in errors] == [str(failure.value)] == [f"the generator at {generator.path} is gone"]
        generator.process.wait(TIMEOUT_S)
        with pytest.raises(UserError, match=f"start a generator with: python {SCRIPT} --socket "):
            GeneratorClient.connect(generator.path, script=SCRIPT)


def test_sigterm_lets_a_short_answer_finish() -> None:
    with toy("--finish", "10") as generator, client_of(generator.path) as client:
        ids: list[int] = []

        def emit(token_id: int) -> None:
            ids.append(token_id)
            if len(ids) == 1:
                generator.process.send_signal(signal.SIGTERM)

        client.stream(Request(prompt_ids=[SLOW], max_new_tokens=5), emit)
        assert ids == toy_answer([SLOW], 5, 0)
        output, log = generator.process.communicate(timeout=TIMEOUT_S)
        assert (generator.process.returncode, output, log) == (0, "engine closed\n", "")
        assert not generator.path.parent.exists()
        with pytest.raises(UserError, match=f"the generator at {generator.path}: the generator was stopped"):
            ask(client, [1])


def test_sigint_fails_a_long_answer_and_those_that_wait() -> None:
    with toy("--finish", "0.2") as generator:
        with client_of(generator.path) as client, channel_to(generator.path) as waiting:
            ids: list[int] = []
            interrupted_s: list[float] = []

            def emit(token_id: int) -> None:
                ids.append(token_id)
                if len(ids) == 1:
                    waiting.send(generate(1, [2]))
                    assert waiting.receive() == Queued(request_id=1, position=1)
                    interrupted_s.append(time.monotonic())
                    generator.process.send_signal(signal.SIGINT)

            with pytest.raises(RequestFailed, match="stopped before the answer was complete") as failure:
                client.stream(Request(prompt_ids=[SLOW], max_new_tokens=200), emit)
            assert 0.15 < time.monotonic() - interrupted_s[0] < 5.0
            assert failure.value.kind == "stopped"
            assert waiting.receive() == Failed(request_id=1, kind="stopped", error="the generator was stopped")
        output, _ = generator.process.communicate(timeout=TIMEOUT_S)
        assert (generator.process.returncode, output) == (130, "engine closed\n")
        assert not generator.path.parent.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signal_ends_an_idle_generator(number: int, code: int) -> None:
    with toy() as generator:
        assert generator.end(number) == (code, "engine closed\n", "")
        assert not generator.path.parent.exists()


def test_generator_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which processes started from here inherit
    try:
        with toy() as generator:
            generator.process.send_signal(signal.SIGHUP)
            assert_serves(generator.path)
            assert generator.end()[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_ends_a_generator_that_starts() -> None:
    with toy("--start-s", "30", ready=False) as generator, channel_to(generator.path, greet=False) as channel:
        channel.send(HELLO)
        channel.receive()
        assert generator.end()[0] == 0
        failed = receive_until(channel, Failed)[-1]
        assert failed == Failed(request_id=None, kind="stopped", error="the generator was stopped before it was ready")
        assert not generator.path.parent.exists()


def test_start_that_fails_reaches_the_client_and_the_exit_code() -> None:
    with toy("--start-s", "0.4", "--fail-start", "unknown model 'x'", ready=False) as generator:
        with pytest.raises(UserError, match=r"could not start: unknown model 'x'$"):
            GeneratorClient.connect(generator.path, script=SCRIPT, timeout_s=TIMEOUT_S)
        _, log = generator.process.communicate(timeout=TIMEOUT_S)
        assert (generator.process.returncode, log) == (1, "error: unknown model 'x'\n")


def test_clients_at_the_door_are_told_why_the_generator_ends(tmp_path: Path) -> None:
    """They connected and said Hello after the last time the generator looked."""
    channels: list[ClientChannel] = []

    def open_engine(_: OnProgress) -> Any:
        for _number in range(5):
            channels.append(ClientChannel.connect(tmp_path / "socket", timeout_s=TIMEOUT_S))
            channels[-1].send(HELLO)
        raise UserError("unknown model 'x'")

    with pytest.raises(UserError, match=r"^unknown model 'x'$"):
        serve(tmp_path / "socket", open_engine, log=lambda _: None)
    for each in channels:
        with closing(each) as channel:
            assert channel.receive() == Failed(request_id=None, kind="start", error="unknown model 'x'")


def test_stop_that_breaks_an_import_is_no_failed_start(tmp_path: Path) -> None:
    """Libraries catch whatever their imports raise, and raise something else."""

    def open_engine(_: OnProgress) -> Any:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        raise ImportError("are its requirements defined correctly?")

    assert serve(tmp_path / "socket", open_engine, log=lambda _: None) == 0


def test_generator_told_to_stop_as_soon_as_it_listens_opens_and_leaves_nothing(tmp_path: Path) -> None:
    opened: list[OnProgress] = []

    def open_engine(progress: OnProgress) -> Any:
        opened.append(progress)
        return ToyEngine()

    def stop(path: Path) -> None:
        assert path.is_socket()
        signal.raise_signal(signal.SIGTERM)

    assert serve(tmp_path / "new" / "socket", open_engine, on_listening=stop) == 0
    assert not opened and not any(tmp_path.iterdir())


def test_generator_polls_while_another_message_may_be_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a while after an answer, a shorter one where that kept a capture from the interpreter; then it sleeps."""
    monkeypatch.setattr("hybridgraph.serving.server.SPIN_S", 1.0)
    monkeypatch.setattr("hybridgraph.serving.server.IDLE_SPIN_S", 100.0)
    engine = ToyEngine()
    waits: list[float | None] = []
    with listen(tmp_path / "socket") as listener, StopSignals() as stop:
        server = Server(listener, stop, print, Timeouts())
        monkeypatch.setattr(server._connections, "poll", waits.append)
        for answered_s_ago, capturing in ((math.inf, False), (10.0, False), (10.0, True), (0.1, True), (200.0, False)):
            server._answered_s = time.perf_counter() - answered_s_ago
            engine.is_capturing = capturing
            server._wait(engine)
        server.close()
    assert waits == [None, 0.0, None, 0.0, None]


@pytest.mark.parametrize("what", ["ready", "starting"])
def test_generator_that_is_stopped_for_good_is_told_to_its_clients(what: str) -> None:
    options = () if what == "ready" else ("--start-s", "60")
    with toy(*options, ready=what == "ready") as generator:
        generator.process.send_signal(signal.SIGSTOP)
        try:
            told = f"^the generator at {generator.path} has said nothing for 0.5 s: it hangs, or was stopped$"
            with pytest.raises(GeneratorSilent, match=told):
                GeneratorClient.connect(generator.path, script=SCRIPT, starting_timeout_s=0.5)
        finally:
            generator.process.send_signal(signal.SIGCONT)


def test_clients_timeout_is_several_heartbeats_and_less_than_half_a_minute() -> None:
    assert 4 * Timeouts().beat_s <= CLIENT_TIMEOUT_S < 30.0


def test_generator_stopped_in_the_middle_of_an_answer_is_told_to_its_client() -> None:
    with toy() as generator, client_of(generator.path, timeout_s=0.5) as client:

        def stop(token_id: int) -> None:
            generator.process.send_signal(signal.SIGSTOP)

        try:
            with pytest.raises(GeneratorSilent):
                client.stream(Request(prompt_ids=[SLOW], max_new_tokens=5), stop)
        finally:
            generator.process.send_signal(signal.SIGCONT)


def test_generator_that_is_stopped_and_full_of_newcomers_is_told_to_the_next() -> None:
    with toy() as generator, ExitStack() as others:
        generator.process.send_signal(signal.SIGSTOP)
        try:
            with suppress(BlockingIOError):
                for _ in range(1000):
                    other = others.enter_context(closing(socket.socket(socket.AF_UNIX)))
                    other.setblocking(False)
                    other.connect(str(generator.path))
            with pytest.raises(GeneratorSilent):
                GeneratorClient.connect(generator.path, script=SCRIPT, starting_timeout_s=0.5)
        finally:
            generator.process.send_signal(signal.SIGCONT)


def test_answer_that_takes_longer_than_the_clients_timeout_is_waited_for() -> None:
    with toy("--beat", "0.2") as generator, client_of(generator.path, timeout_s=1.5) as client:
        assert ask(client, [LONG_CALL]) == toy_answer([LONG_CALL], 1, 0)


def test_call_that_never_returns_has_no_heartbeat() -> None:
    beats: list[float] = []
    heartbeat = Heartbeat(lambda: beats.append(time.monotonic()), every_s=0.02, hung_s=0.5)
    begun_s = heartbeat.seen()
    with heartbeat.away():
        time.sleep(1.5)
    heartbeat.close()
    assert beats and max(beats) < begun_s + 1.0


def test_server_that_is_seen_has_no_heartbeat() -> None:
    beats: list[float] = []
    heartbeat = Heartbeat(lambda: beats.append(0.0), every_s=0.5, hung_s=100.0)
    time.sleep(0.8)  # it is here: it holds the lock
    with heartbeat.away():
        for _ in range(150):
            heartbeat.seen()
            time.sleep(0.01)
    heartbeat.close()
    assert beats == []
