"""What clients do wrong, or do on purpose: it ends their own connection, and an honest client does not notice."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest
from toy_clients import (
    TIMEOUT_S,
    ask,
    assert_serves,
    channel_to,
    client_of,
    end_with_parent,
    frame,
    generate,
    receive_until,
    surviving_toy,
    toy,
)
from toy_generator import SLOW, toy_answer

from hybridgraph.errors import UserError
from hybridgraph.serving.ipc.address import listen
from hybridgraph.serving.ipc.channel import ClientChannel, GeneratorGone
from hybridgraph.serving.ipc.connections import IDLE_S, MAX_CLIENTS, Connection, Connections
from hybridgraph.serving.ipc.messages import (
    HELLO,
    LENGTH_PREFIX,
    MAX_FRAME_BYTES,
    Cancel,
    Done,
    Failed,
    GetStats,
    Hello,
    Queued,
    Ready,
    Token,
    ToServer,
    encode,
)


@pytest.fixture(scope="module")
def served() -> Iterator[Path]:
    with surviving_toy() as path:
        yield path


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
def test_bytes_that_are_no_message_end_their_own_connection_only(
    served: Path, sent: bytes, kind: str, error: str
) -> None:
    with client_of(served) as bystander:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(served))
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            with closing(ClientChannel(raw, timeout_s=TIMEOUT_S)) as channel:
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
def test_bytes_that_are_no_message_are_not_quoted_at_length(served: Path, fields: dict[str, object]) -> None:
    body = msgspec.msgpack.encode(fields)
    assert len(body) <= MAX_FRAME_BYTES
    with client_of(served) as bystander, channel_to(served) as channel:
        channel.send_frame(LENGTH_PREFIX.pack(len(body)) + body)
        failed = receive_until(channel, Failed)[-1]
        assert isinstance(failed, Failed)
        assert len(failed.error) < 1000 and failed.error.isprintable()
        assert ask(bystander, [4]) == toy_answer([4], 1, 0)


def test_message_may_come_byte_by_byte(served: Path) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(served))
        for byte in bytes(encode(HELLO)) + bytes(encode(generate(1, [9]))):
            raw.sendall(bytes([byte]))
        with closing(ClientChannel(raw, timeout_s=TIMEOUT_S)) as channel:
            assert isinstance(receive_until(channel, Done)[0], Ready)


def test_client_that_says_nothing_is_dropped_and_blocks_nobody() -> None:
    with toy("--hello-timeout", "0.3") as generator, channel_to(generator.path, greet=False) as silent:
        connected_s = time.monotonic()
        assert_serves(generator.path)
        failed = silent.receive()
        assert time.monotonic() - connected_s > 0.2
        assert failed == Failed(request_id=None, kind="protocol", error="no Hello within 0.3 s")


def test_client_that_does_not_read_is_dropped(served: Path) -> None:
    with channel_to(served) as deaf:
        with pytest.raises((GeneratorGone, TimeoutError)):
            for _ in range(200_000):
                deaf.send(GetStats())
        assert_serves(served)


# --- floods -------------------------------------------------------------------------------------


class Ends:
    """The generator's ends of connections, in this process, and what came of them."""

    def __init__(self, connections: Connections, path: Path, received: list[tuple[Connection, ToServer]]) -> None:
        self.connections = connections
        self.path = path
        self.received = received

    def connected(self) -> socket.socket:
        """The other end of a client that has introduced itself."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.sendall(encode(HELLO))
        while self.connections.poll(0.0):
            pass
        return client


@pytest.fixture
def ends() -> Iterator[Ends]:
    received: list[tuple[Connection, ToServer]] = []
    with listen() as listener:
        connections = Connections(
            listener,
            on_hello=lambda connection: None,
            on_message=lambda connection, message: received.append((connection, message)),
            on_close=lambda connection: None,
            log=lambda line: None,
        )
        with closing(connections):
            yield Ends(connections, listener.path, received)


CANCELS = b"".join(bytes(encode(Cancel(request_id=number))) for number in range(2000))


def test_frames_of_a_flood_are_taken_in_turns_with_others(ends: Ends) -> None:
    with ends.connected() as flood, ends.connected() as other_flood, ends.connected() as honest:
        flood.sendall(CANCELS)
        other_flood.sendall(CANCELS)
        honest.sendall(encode(GetStats()))
        while not any(isinstance(message, GetStats) for _, message in ends.received):
            assert ends.connections.poll(0.0)
        number = next(n for n, (_, message) in enumerate(ends.received) if isinstance(message, GetStats))
        assert number <= 2, "after one frame of each other client"


def test_poll_ends_when_its_time_is_over(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    with ends.connected() as flood, ends.connected() as honest:
        flood.sendall(CANCELS)
        honest.sendall(encode(GetStats()))
        monkeypatch.setattr("hybridgraph.serving.ipc.connections.POLL_BUDGET_S", 0.0)
        for number in range(1, 5):
            ends.connections.poll(None)
            assert len(ends.received) == number, "what was left waits for nothing else to happen"
        monkeypatch.undo()
        while ends.connections.poll(0.0):
            pass
        assert len(ends.received) == 2001


def test_client_whose_hello_is_not_read_yet_is_not_silent(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator was in a long call, or others had their turns first."""
    monkeypatch.setattr(ends.connections, "_hello_timeout_s", 0.01)
    with socket.socket(socket.AF_UNIX) as client, ends.connected() as flood:
        client.connect(str(ends.path))
        ends.connections.poll(0.0)
        flood.sendall(CANCELS)
        client.sendall(encode(HELLO))
        time.sleep(0.05)
        monkeypatch.setattr("hybridgraph.serving.ipc.connections.POLL_BUDGET_S", 0.0)
        for _ in range(3):
            ends.connections.poll(0.0)
        assert len(ends.connections.greeted) == 2


def test_newcomers_without_end_are_taken_in_turns_with_clients(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    with ends.connected() as honest, ExitStack() as newcomers:
        for _ in range(50):
            newcomers.enter_context(closing(socket.socket(socket.AF_UNIX))).connect(str(ends.path))
        honest.sendall(encode(GetStats()))
        monkeypatch.setattr("hybridgraph.serving.ipc.connections.POLL_BUDGET_S", 0.0)
        for _ in range(3):
            ends.connections.poll(0.0)
        assert len(ends.received) == 1


class OutOfDescriptors:
    """A listening socket whose process has no descriptor left until it is told that there is one."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self.has_none = True

    def fileno(self) -> int:
        return self._inner.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        if self.has_none:
            raise OSError(24, "Too many open files")
        return self._inner.accept()


def test_accepting_pauses_without_descriptors_and_answering_does_not(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("the answering thread slept")

    monkeypatch.setattr(time, "sleep", sleep)
    with ends.connected() as honest, closing(socket.socket(socket.AF_UNIX)) as newcomer:
        (connection,) = ends.connections.greeted
        connection.keeps_place_until_s = time.monotonic() + IDLE_S
        door = ends.connections._listener = OutOfDescriptors(ends.connections._listener)  # type: ignore[assignment]
        newcomer.connect(str(ends.path))
        ends.connections.poll(0.0)
        assert not ends.connections.poll(0.0), "it does not try again at once"
        honest.sendall(encode(GetStats()))
        assert ends.connections.poll(None) and len(ends.received) == 1
        door.has_none = False
        newcomer.sendall(encode(HELLO))
        while len(ends.connections.greeted) < 2:
            ends.connections.poll(None)  # until it tries again, and no longer


def limited_to_descriptors(number: int) -> None:
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def test_generator_out_of_descriptors_answers_and_lets_idle_clients_go_for_new_ones() -> None:
    with (
        toy(preexec_fn=partial(limited_to_descriptors, 24)) as generator,
        client_of(generator.path) as honest,
        ExitStack() as idle,
    ):
        assert ask(honest, [4]) == toy_answer([4], 1, 0)
        for _ in range(40):
            idle.enter_context(closing(socket.socket(socket.AF_UNIX))).connect(str(generator.path))
        assert ask(honest, [SLOW], 10) == toy_answer([SLOW], 10, 0)
        assert_serves(generator.path)
        assert ask(honest, [4]) == toy_answer([4], 1, 0), "who was answered keeps its place"
        code, _, log = generator.end()
        assert code == 0 and len(log.splitlines()) < 10


@pytest.mark.parametrize("greet", [True, False], ids=["greeted", "silent"])
def test_idle_clients_that_hold_every_place_make_room(greet: bool) -> None:
    with toy() as generator, client_of(generator.path) as honest, ExitStack() as idle:
        assert ask(honest, [4]) == toy_answer([4], 1, 0)
        channels = [idle.enter_context(channel_to(generator.path, greet=greet)) for _ in range(MAX_CLIENTS - 1)]
        assert_serves(generator.path)
        failed = channels[0].receive()
        assert (
            isinstance(failed, Failed) and failed.error == "nothing was asked for, and another client needs the place"
        )
        assert ask(honest, [4]) == toy_answer([4], 1, 0)


def test_clients_that_are_served_keep_their_places(served: Path) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(client_of(served)) for _ in range(MAX_CLIENTS)]
        for client in clients:
            ask(client, [4])
        with pytest.raises(UserError, match=f"{MAX_CLIENTS} clients are connected already"):
            assert_serves(served)
        for client in clients:
            assert ask(client, [4]) == toy_answer([4], 1, 0)


@contextmanager
def flooding(path: Path, frames: bytes) -> Iterator[None]:
    """A client that sends ``frames`` again and again and throws its replies away, from a thread."""
    ending = threading.Event()

    def throw_replies_away(end: socket.socket) -> None:
        with suppress(OSError):
            while end.recv(1 << 16):
                pass

    def flood(end: socket.socket) -> None:
        with suppress(OSError):
            end.sendall(encode(HELLO))
            while not ending.is_set():
                end.sendall(frames)

    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(path))
        threads = [threading.Thread(target=work, args=(end,)) for work in (flood, throw_replies_away)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ending.set()
            end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


ASKING = bytes(encode(GetStats())) * 1000


@pytest.mark.parametrize("frames", [ASKING, CANCELS], ids=["GetStats", "Cancel"])
def test_client_that_floods_does_not_stretch_anothers_answer(frames: bytes) -> None:
    with toy() as generator, client_of(generator.path) as honest:
        alone_s = timed(lambda: ask(honest, [SLOW], 10))
        with flooding(generator.path, frames), flooding(generator.path, frames):
            time.sleep(0.2)
            beside_s = timed(lambda: ask(honest, [SLOW], 10))
            assert generator.end()[0] == 0
        assert beside_s < 3 * alone_s + 2.0


def timed(work: Callable[[], object]) -> float:
    begun_s = time.monotonic()
    work()
    return time.monotonic() - begun_s


def test_request_that_is_cancelled_again_and_again_is_answered_once(served: Path) -> None:
    """Requests and their Cancels in one flood: each gets one end, in whatever state it was."""
    with channel_to(served) as channel:
        for number in range(200):
            channel.send(generate(number, [4]))
            channel.send(Cancel(request_id=number))
            channel.send(Cancel(request_id=number))
        ends = []
        while len(ends) < 200:
            message = channel.receive()
            if isinstance(message, (Done, Failed)):
                ends.append(message.request_id)
            else:
                assert isinstance(message, (Token, Queued))
        assert sorted(ends) == list(range(200))  # type: ignore[type-var]
