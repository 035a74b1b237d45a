"""A generator, its clients, and every fault between them: real sockets, real processes."""

from __future__ import annotations

import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toy_generator import BREAKS, BREAKS_FOR_GOOD, MAX_SEQ_LEN, SLOW, TOKEN_S, VOCAB_SIZE, ToyEngine, toy_answer

from hybridgraph.cli.commands import refuse_to_wait
from hybridgraph.contract import Report, Request
from hybridgraph.errors import UserError
from hybridgraph.serving.client import GeneratorClient, OnQueued, RequestFailed
from hybridgraph.serving.ipc.address import fresh_socket_path, listen, remove_left_behind
from hybridgraph.serving.ipc.channel import ClientChannel, GeneratorGone
from hybridgraph.serving.ipc.messages import (
    HELLO,
    LENGTH_PREFIX,
    MAX_FRAME_BYTES,
    Cancel,
    Done,
    Failed,
    Generate,
    GetStats,
    Hello,
    Prefill,
    Queued,
    Ready,
    Stats,
    ToClient,
    Token,
    encode,
)
from hybridgraph.serving.server import MAX_WAITING_PER_CLIENT, Timeouts, Server, serve
from hybridgraph.system.console import OnProgress, nobody
from hybridgraph.system.signals import StopSignals

SCRIPT = "case4_jit_cuda_generator.py"
ROOT = Path(__file__).resolve().parents[1]


class Toy:
    """A toy generator in a process of its own."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        command = [sys.executable, str(ROOT / "tests" / "toy_generator.py"), str(path), *options]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def wait_for(self, line: str) -> Toy:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == line
        return self

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Its exit code, the rest of its output, and its log."""
        self.process.send_signal(number)
        output, log = self.process.communicate(timeout=5)
        return self.process.returncode, output, log


@contextmanager
def toy(*options: str, path: Path | None = None, ready: bool = True) -> Iterator[Toy]:
    """A running toy generator, on a path of its own unless one is given."""
    fresh = fresh_socket_path()
    generator = Toy(path or fresh, *options)
    try:
        generator.wait_for("listening")
        yield generator.wait_for("ready") if ready else generator
    finally:
        generator.process.kill()
        generator.process.communicate()
        remove_left_behind(fresh)


@pytest.fixture(scope="module")
def served() -> Iterator[Path]:
    """One generator that has to survive everything the tests of this module do to it."""
    with toy("--hello-timeout", "0.3") as generator:
        yield generator.path
        assert generator.process.poll() is None


@contextmanager
def client_of(path: Path, on_queued: OnQueued = nobody) -> Iterator[GeneratorClient]:
    with closing(GeneratorClient.connect(path, script=SCRIPT, timeout_s=5.0, on_queued=on_queued)) as client:
        yield client


@contextmanager
def channel_to(path: Path, *, greet: bool = True) -> Iterator[ClientChannel]:
    """A client that says exactly what a test wants it to."""
    with closing(ClientChannel.connect(path, timeout_s=5.0)) as channel:
        if greet:
            channel.send(HELLO)
            assert isinstance(channel.receive(), Ready)
        yield channel


def ask(client: GeneratorClient, prompt_ids: list[int], count: int = 1, seed: int = 0) -> list[int]:
    ids: list[int] = []
    client.stream(Request(prompt_ids=prompt_ids, max_new_tokens=count, seed=seed), ids.append)
    return ids


def generate(request: int, prompt_ids: list[int], count: int = 1) -> Generate:
    return Generate(
        request_id=request, request=Request(prompt_ids=prompt_ids, max_new_tokens=count, temperature=0.0, seed=0)
    )


def assert_serves(path: Path) -> None:
    with client_of(path) as client:
        assert ask(client, [1, 2], 3) == toy_answer([1, 2], 3, 0)


def receive_until(channel: ClientChannel, kind: type[ToClient]) -> list[ToClient]:
    received = [channel.receive()]
    while not isinstance(received[-1], kind):
        received.append(channel.receive())
    return received


# --- what works ---------------------------------------------------------------------------------


def test_answer_is_streamed_and_reported(served: Path) -> None:
    with client_of(served) as client:
        assert client.info.vocab_size == VOCAB_SIZE
        assert client.info.environment == {"nested": [1, {"a": None}]}
        ids: list[int] = []
        request = Request(prompt_ids=[1, 2, 3], max_new_tokens=5, seed=4)
        assert client.stream(request, ids.append) == Report(device_ms=1.5, graph_path="exact")
        assert ids == toy_answer([1, 2, 3], 5, 4)


def test_tokens_arrive_when_they_exist(served: Path) -> None:
    stamps: list[float] = []
    with client_of(served) as client:
        client.stream(Request(prompt_ids=[SLOW], max_new_tokens=4), lambda _: stamps.append(time.perf_counter()))
    gaps = [after - before for before, after in pairwise(stamps)]
    assert min(gaps) > TOKEN_S / 2


def test_progress_then_ready() -> None:
    seen: list[tuple[str, int, int]] = []
    with toy("--start-s", "0.5", ready=False) as generator:
        client = GeneratorClient.connect(
            generator.path, script=SCRIPT, timeout_s=5.0, on_progress=lambda *progress: seen.append(progress)
        )
        with closing(client):
            assert ("capturing graphs", 1, 3) in seen
            assert client.stats()["server"]["startup_s"] >= 0.5
            assert ask(client, [1], 1) == toy_answer([1], 1, 0)


def test_a_request_sent_before_ready_is_answered() -> None:
    with toy("--start-s", "0.3", ready=False) as generator, channel_to(generator.path, greet=False) as channel:
        channel.send(HELLO)
        channel.send(generate(1, [5]))
        tokens = [m for m in receive_until(channel, Done) if isinstance(m, Token)]
        assert [t.id for t in tokens] == toy_answer([5], 1, 0)


def test_others_wait_in_order_and_see_it(served: Path) -> None:
    with channel_to(served) as first, channel_to(served) as second, channel_to(served) as third:
        first.send(generate(1, [SLOW], 6))
        assert isinstance(first.receive(), Token)
        second.send(generate(1, [2]))
        assert second.receive() == Queued(request_id=1, position=1)
        third.send(generate(1, [3]))
        assert third.receive() == Queued(request_id=1, position=2)
        third.send(GetStats())
        stats = third.receive()
        assert isinstance(stats, Stats)
        assert stats.values["server"]["waiting"] == 2
        assert isinstance(receive_until(first, Done)[-1], Done)
        # The second is answered before the third is told that one less is ahead of it, or that none is.
        assert [type(m) for m in receive_until(second, Done)] == [Token, Done]
        assert third.receive() == Queued(request_id=1, position=1)
        assert [type(m) for m in receive_until(third, Done)] == [Token, Done]


def test_what_is_measured_waits_for_nobody(served: Path) -> None:
    with channel_to(served) as other, client_of(served, on_queued=refuse_to_wait) as measuring:
        assert measuring.stream(Request(prompt_ids=[5]), print).graph_path == "exact"
        other.send(generate(1, [SLOW], 6))
        assert isinstance(other.receive(), Token)
        with pytest.raises(UserError, match=r"^the generator answers others, whose requests are ahead \(1\)"):
            measuring.stream(Request(prompt_ids=[5]), print)
        assert isinstance(receive_until(other, Done)[-1], Done)
    assert_serves(served)


def test_a_start_may_take_longer_than_a_client_bears_silence() -> None:
    with (
        toy("--start-s", "1.5", ready=False) as generator,
        closing(GeneratorClient.connect(generator.path, script=SCRIPT, timeout_s=0.5)) as client,
    ):
        generator.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(UserError, match=r"has said nothing for 0\.5 s"):
                client.stream(Request(prompt_ids=[5]), print)
        finally:
            generator.process.send_signal(signal.SIGCONT)


def test_one_client_does_not_fill_the_line(served: Path) -> None:
    with channel_to(served) as channel:
        channel.send(generate(1, [SLOW], 50))
        assert isinstance(channel.receive(), Token), "it holds the engine, and the others wait"
        for number in range(2, MAX_WAITING_PER_CLIENT + 3):
            channel.send(generate(number, [SLOW], 50))
        failed = receive_until(channel, Failed)[-1]
        assert isinstance(failed, Failed)
        assert (failed.request_id, failed.kind) == (MAX_WAITING_PER_CLIENT + 2, "request")


def test_round_trip_is_short(served: Path) -> None:
    times_us: list[float] = []
    request = Request(prompt_ids=[1] * 10)
    with client_of(served) as client:
        for _ in range(300):
            start_ns = time.perf_counter_ns()
            client.stream(request, lambda _: times_us.append((time.perf_counter_ns() - start_ns) / 1e3))  # noqa: B023
    # About 90 µs where nothing else runs; the bound only catches a poll or Nagle's kind of delay, 40 ms and more.
    assert statistics.median(times_us) < 20_000


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt_ids", "count", "error"),
    [
        ([], 1, "the prompt is empty"),
        ([VOCAB_SIZE], 1, f"token id {VOCAB_SIZE} is outside the vocabulary of {VOCAB_SIZE}"),
        ([-1], 1, "token id -1 is outside the vocabulary of 100"),
        ([2**63 - 1], 1, "token id 9223372036854775807 is outside the vocabulary of 100"),
        ([1] * MAX_SEQ_LEN, 1, f"{MAX_SEQ_LEN} ids and 1 new: at most {MAX_SEQ_LEN}"),
    ],
)
def test_a_bad_request_is_refused_and_its_client_goes_on(
    served: Path, prompt_ids: list[int], count: int, error: str
) -> None:
    with client_of(served) as client:
        with pytest.raises(RequestFailed) as failure:
            ask(client, prompt_ids, count)
        assert str(failure.value) == error
        assert failure.value.kind == "request"
        assert ask(client, [4]) == toy_answer([4], 1, 0)


def test_an_engine_error_is_one_line_and_the_generator_goes_on() -> None:
    with toy() as generator:
        with client_of(generator.path) as client:
            with pytest.raises(RequestFailed, match="RuntimeError: the engine broke on two lines") as failure:
                ask(client, [BREAKS])
            assert failure.value.kind == "engine"
            assert ask(client, [4]) == toy_answer([4], 1, 0)
        _, _, log = generator.end()
        assert log == "generator: a request failed in the engine: RuntimeError: the engine broke on two lines\n"


def test_a_device_that_is_lost_ends_the_generator() -> None:
    with toy() as generator, client_of(generator.path) as client, channel_to(generator.path) as other:
        with pytest.raises(RequestFailed, match="device-side assert"):
            ask(client, [BREAKS_FOR_GOOD])
        reason = "the device can no longer be used (RuntimeError: device-side assert): start the generator again"
        assert other.receive() == Failed(request_id=None, kind="engine", error=reason)
        _, log = generator.process.communicate(timeout=5)
        assert (generator.process.returncode, log.splitlines()[-1]) == (1, f"error: {reason}")


def test_what_cannot_be_answered_is_refused_before_its_turn(served: Path) -> None:
    with channel_to(served) as holder, channel_to(served) as waiting:
        holder.send(generate(1, [SLOW], 20))
        assert isinstance(holder.receive(), Token)
        waiting.send(generate(1, [VOCAB_SIZE]))
        refusal = waiting.receive()
        assert isinstance(refusal, Failed) and refusal.kind == "request"
        holder.send(Cancel(request_id=1))


def frame(body: bytes) -> bytes:
    return LENGTH_PREFIX.pack(len(body)) + body


@pytest.mark.parametrize(
    ("sent", "kind", "error"),
    [
        (LENGTH_PREFIX.pack(MAX_FRAME_BYTES + 1), "protocol", f"a frame of {MAX_FRAME_BYTES + 1} bytes: at most"),
        (b"GET / HTTP/1.1\r\n\r\n", "protocol", "a frame of 1195725856 bytes: at most"),
        (frame(b"\xc1\xff garbage"), "protocol", "no message of this protocol"),
        (frame(b"\x80"), "protocol", "no message of this protocol"),
        (frame(b"\x91" * 100_000), "protocol", "no message of this protocol"),
        (bytes(encode(Hello(protocol="hybridgraph", version=1))), "version", "protocol version 1: this generator"),
        (bytes(encode(generate(1, [1]))), "protocol", "no message of this protocol"),
        (bytes(encode(HELLO)) * 2, "protocol", "a second Hello"),
        (bytes(encode(HELLO)) + frame(b'{"type": "generate"}'), "protocol", "no message of this protocol"),
        (bytes(encode(HELLO)) + frame(b"\x81\xa4type\xa6reboot"), "protocol", "no message of this protocol"),
        (bytes(encode(HELLO))[:-3], "protocol", "the connection ended inside a frame"),
        (bytes(encode(HELLO)) + b"\x00\x00", "protocol", "the connection ended inside a frame"),
    ],
)
def test_what_is_no_message_ends_its_own_connection_only(served: Path, sent: bytes, kind: str, error: str) -> None:
    with client_of(served) as bystander:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(served))
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            with closing(ClientChannel(raw, timeout_s=5.0)) as channel:
                failed = receive_until(channel, Failed)[-1]
                assert isinstance(failed, Failed)
                assert (failed.request_id, failed.kind) == (None, kind)
                assert failed.error.startswith(error)
                assert "\n" not in failed.error
                with pytest.raises(GeneratorGone):
                    channel.receive()
        assert ask(bystander, [4]) == toy_answer([4], 1, 0)


LONG = "x\n" * 500_000


@pytest.mark.parametrize(
    "fields",
    [{"type": LONG}, {"type": "hello", "protocol": LONG}, {"type": "cancel", "request_id": 1, LONG: 1}],
    ids=["type", "value", "name"],
)
def test_what_is_no_message_is_not_quoted_at_length(served: Path, fields: dict[str, object]) -> None:
    body = msgspec.msgpack.encode(fields)
    assert len(body) <= MAX_FRAME_BYTES
    with client_of(served) as bystander, channel_to(served) as channel:
        channel.send_frame(LENGTH_PREFIX.pack(len(body)) + body)
        failed = receive_until(channel, Failed)[-1]
        assert isinstance(failed, Failed)
        assert len(failed.error) < 1000 and failed.error.isprintable()
        assert ask(bystander, [4]) == toy_answer([4], 1, 0)


def test_a_message_may_come_byte_by_byte(served: Path) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(served))
        for byte in bytes(encode(HELLO)) + bytes(encode(generate(1, [9]))):
            raw.sendall(bytes([byte]))
        with closing(ClientChannel(raw, timeout_s=5.0)) as channel:
            assert isinstance(receive_until(channel, Done)[0], Ready)


def test_a_message_too_large_is_not_sent(served: Path) -> None:
    with client_of(served) as client:
        with pytest.raises(UserError, match=f"at most {MAX_FRAME_BYTES}"):
            ask(client, [1] * (MAX_FRAME_BYTES + 1))
        assert ask(client, [4]) == toy_answer([4], 1, 0)


def test_a_client_that_says_nothing_is_dropped_and_blocks_nobody(served: Path) -> None:
    with channel_to(served, greet=False) as silent:
        connected_s = time.monotonic()
        assert_serves(served)
        failed = silent.receive()
        assert 0.2 < time.monotonic() - connected_s < 2.0
        assert failed == Failed(request_id=None, kind="protocol", error="no Hello within 0.3 s")


def test_a_client_that_does_not_read_is_dropped(served: Path) -> None:
    with channel_to(served) as deaf:
        with pytest.raises((GeneratorGone, TimeoutError)):
            for _ in range(200_000):
                deaf.send(GetStats())
        assert_serves(served)


def test_a_client_that_leaves_mid_answer_frees_the_engine(served: Path) -> None:
    with channel_to(served) as leaving:
        leaving.send(generate(1, [SLOW], 200))  # 10 s
        assert isinstance(leaving.receive(), Token)
    start_s = time.monotonic()
    with client_of(served) as client:
        assert ask(client, [4]) == toy_answer([4], 1, 0)
        assert time.monotonic() - start_s < 1.0
        assert client.stats()["abandoned"] >= 1


def test_a_client_that_leaves_while_it_waits_is_forgotten(served: Path) -> None:
    with channel_to(served) as holder, channel_to(served) as last:
        holder.send(generate(1, [SLOW], 8))
        assert isinstance(holder.receive(), Token)
        with channel_to(served) as leaving:
            leaving.send(generate(1, [SLOW], 200))
            assert leaving.receive() == Queued(request_id=1, position=1)
            last.send(generate(1, [4]))
            assert last.receive() == Queued(request_id=1, position=2)
        assert last.receive() == Queued(request_id=1, position=1)
        assert [type(m) for m in receive_until(last, Done)] == [Token, Done]


# --- cancelling ---------------------------------------------------------------------------------


def test_cancel_ends_the_answer_in_flight(served: Path) -> None:
    with client_of(served) as client:
        ids: list[int] = []

        def emit(token_id: int) -> None:
            ids.append(token_id)
            if len(ids) == 2:
                client.cancel()

        with pytest.raises(RequestFailed, match="was cancelled") as failure:
            client.stream(Request(prompt_ids=[SLOW], max_new_tokens=200), emit)
        assert failure.value.kind == "cancelled"
        assert len(ids) < 6
        assert ask(client, [4], 2) == toy_answer([4], 2, 0)


def test_cancel_ends_a_waiting_request(served: Path) -> None:
    with channel_to(served) as holder, channel_to(served) as waiting:
        holder.send(generate(1, [SLOW], 5))
        assert isinstance(holder.receive(), Token)
        waiting.send(generate(1, [2]))
        assert waiting.receive() == Queued(request_id=1, position=1)
        waiting.send(Cancel(request_id=99))  # of nobody: ignored
        waiting.send(Cancel(request_id=1))
        assert waiting.receive() == Failed(request_id=1, kind="cancelled", error="the request was cancelled")
        assert isinstance(receive_until(holder, Done)[-1], Done)


def test_an_exception_of_the_caller_gives_up_the_answer(served: Path) -> None:
    def emit(token_id: int) -> None:
        raise ZeroDivisionError

    with client_of(served) as client:
        with pytest.raises(ZeroDivisionError):
            client.stream(Request(prompt_ids=[SLOW], max_new_tokens=200), emit)
        start_s = time.monotonic()
        assert ask(client, [4], 2) == toy_answer([4], 2, 0)
        assert time.monotonic() - start_s < 1.0


def test_buffers_are_refused_where_the_engine_has_none(served: Path) -> None:
    with channel_to(served) as channel:
        channel.send(Prefill(request_id=1, length=3))
        assert channel.receive() == Failed(
            request_id=1, kind="request", error="this client does not hold the shared buffers"
        )


# --- the generator's end ------------------------------------------------------------------------


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


def test_every_client_says_within_a_second_that_a_killed_generator_is_gone() -> None:
    with toy() as generator, client_of(generator.path) as asking, client_of(generator.path) as idle:
        first = threading.Event()
        request = Request(prompt_ids=[SLOW], max_new_tokens=200)
        thread, errors = in_background(lambda: asking.stream(request, lambda _: first.set()))
        assert first.wait(5)
        generator.process.kill()
        killed_s = time.monotonic()
        thread.join(5)
        with pytest.raises(UserError) as failure:
            ask(idle, [1])
        assert time.monotonic() - killed_s < 1.0
        assert [str(e) for e in errors] == [str(failure.value)] == [f"the generator at {generator.path} is gone"]
        generator.process.wait(5)
        with pytest.raises(UserError, match=f"start a generator with: python {SCRIPT} --socket "):
            GeneratorClient.connect(generator.path, script=SCRIPT)


def test_who_waits_in_line_hears_of_it_again() -> None:
    with toy("--beat", "0.1") as generator, channel_to(generator.path) as busy, channel_to(generator.path) as waiting:
        busy.send(generate(1, [SLOW], 10))
        assert isinstance(busy.receive(), Token)
        waiting.send(generate(1, [2]))
        replies = receive_until(waiting, Done)
        assert replies[:3] == [Queued(request_id=1, position=1)] * 3


def test_sigterm_finishes_a_short_answer() -> None:
    with toy() as generator, client_of(generator.path) as client:
        ids: list[int] = []

        def emit(token_id: int) -> None:
            ids.append(token_id)
            if len(ids) == 1:
                generator.process.send_signal(signal.SIGTERM)

        client.stream(Request(prompt_ids=[SLOW], max_new_tokens=5), emit)
        assert ids == toy_answer([SLOW], 5, 0)
        output, log = generator.process.communicate(timeout=5)
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
            assert 0.15 < time.monotonic() - interrupted_s[0] < 1.5
            assert failure.value.kind == "stopped"
            assert waiting.receive() == Failed(request_id=1, kind="stopped", error="the generator was stopped")
        output, _ = generator.process.communicate(timeout=5)
        assert (generator.process.returncode, output) == (130, "engine closed\n")
        assert not generator.path.parent.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_an_idle_generator(number: int, code: int) -> None:
    with toy() as generator:
        assert generator.end(number) == (code, "engine closed\n", "")
        assert not generator.path.parent.exists()


def test_under_nohup_a_generator_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which processes started from here inherit
    try:
        with toy() as generator:
            generator.process.send_signal(signal.SIGHUP)
            assert_serves(generator.path)
            assert generator.end()[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_ends_a_generator_that_starts() -> None:
    with toy("--start-s", "30", ready=False) as generator, channel_to(generator.path, greet=False) as channel:
        channel.send(HELLO)
        channel.receive()
        assert generator.end()[0] == 0
        failed = receive_until(channel, Failed)[-1]
        assert failed == Failed(request_id=None, kind="stopped", error="the generator was stopped before it was ready")
        assert not generator.path.parent.exists()


def test_a_failed_start_reaches_the_client_and_the_exit_code() -> None:
    with toy("--start-s", "0.4", "--fail-start", "unknown model 'x'", ready=False) as generator:
        with pytest.raises(UserError, match=r"could not start: unknown model 'x'$"):
            GeneratorClient.connect(generator.path, script=SCRIPT, timeout_s=5.0)
        _, log = generator.process.communicate(timeout=5)
        assert (generator.process.returncode, log) == (1, "error: unknown model 'x'\n")


def test_clients_at_the_door_are_told_why_the_generator_ends(tmp_path: Path) -> None:
    """They connected and said Hello after the last time the generator looked."""
    channels: list[ClientChannel] = []

    def open_engine(_: OnProgress) -> Any:
        for _number in range(5):
            channels.append(ClientChannel.connect(tmp_path / "socket", timeout_s=5.0))
            channels[-1].send(HELLO)
        raise UserError("unknown model 'x'")

    with pytest.raises(UserError, match=r"^unknown model 'x'$"):
        serve(tmp_path / "socket", open_engine, log=lambda _: None)
    for each in channels:
        with closing(each) as channel:
            assert channel.receive() == Failed(request_id=None, kind="start", error="unknown model 'x'")


def test_a_stop_that_breaks_an_import_is_no_failed_start(tmp_path: Path) -> None:
    """Libraries catch whatever their imports raise, and raise something else."""

    def open_engine(_: OnProgress) -> Any:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        raise ImportError("are its requirements defined correctly?")

    assert serve(tmp_path / "socket", open_engine, log=lambda _: None) == 0


def test_a_generator_told_to_stop_as_soon_as_it_listens_opens_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    opened: list[OnProgress] = []

    def open_engine(progress: OnProgress) -> Any:
        opened.append(progress)
        return ToyEngine()

    def stop(path: Path) -> None:
        assert path.is_socket()
        signal.raise_signal(signal.SIGTERM)

    assert serve(tmp_path / "new" / "socket", open_engine, on_listening=stop) == 0
    assert not opened and not any(tmp_path.iterdir())


def test_a_generator_polls_while_another_message_may_be_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# --- the address --------------------------------------------------------------------------------


def test_no_generator_is_one_line_that_says_how_to_start_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with pytest.raises(UserError) as failure:
        GeneratorClient.connect(path, script=SCRIPT)
    assert str(failure.value) == f"no generator at {path}: start one with: python {SCRIPT} --socket {path}"


def test_what_is_no_socket_is_told(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match="a file is no socket: start a generator at another path"):
        GeneratorClient.connect(tmp_path / "a file", script=SCRIPT)
    with pytest.raises(UserError, match=f"python {SCRIPT} --socket '{tmp_path}/no where'$"):
        GeneratorClient.connect(tmp_path / "no where", script=SCRIPT)


def test_a_second_generator_on_the_same_path_is_refused(served: Path) -> None:
    second = Toy(served)
    output, log = second.process.communicate(timeout=5)
    assert (second.process.returncode, output, log) == (1, "", f"error: a generator is already serving {served}\n")
    assert_serves(served)


def test_a_stale_socket_makes_way(served: Path) -> None:
    with toy() as killed:
        killed.process.kill()
        killed.process.wait()
        assert killed.path.is_socket()
        with toy(path=killed.path) as successor:
            assert_serves(successor.path)
