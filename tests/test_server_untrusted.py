"""Generators that are broken or none at all: their client says so in one line, in bounded time."""

from __future__ import annotations

import copy
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toy_clients import SCRIPT, frame

from hybridgraph.cases import CASE4
from hybridgraph.cli.commands import run_client
from hybridgraph.config import Config
from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.roofline import ModelShape, Rates
from hybridgraph.serving.client import GeneratorClient, GeneratorLost, GeneratorSilent
from hybridgraph.serving.ipc.address import listen
from hybridgraph.serving.ipc.channel import FrameReader
from hybridgraph.serving.ipc.messages import Done, Generate, GetStats, Token, decode_to_server, encode
from hybridgraph.serving.shared_client import SharedBufferClient

Behaviour = Callable[[socket.socket], None]


@contextmanager
def listening(behave: Behaviour) -> Iterator[Path]:
    """A program at a socket that does with each of its connections as it likes."""
    ending = threading.Event()

    def accept(listener: socket.socket) -> None:
        while not ending.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                connection.setblocking(True)
                with connection:
                    behave(connection)
            time.sleep(0.001)

    with listen() as listener:
        thread = threading.Thread(target=accept, args=(listener.socket,))
        thread.start()
        try:
            yield listener.path
        finally:
            ending.set()
            thread.join()


def facts() -> dict[str, Any]:
    """What a generator tells of itself, as it travels."""
    configuration = Config(model="toy", dtype="float32", device="cpu", max_seq_len=512, ops="native").as_json()
    info = SourceInfo(
        model="toy",
        dtype="float32",
        load_format="dummy",
        device="a processor",
        vocab_size=100,
        max_seq_len=512,
        special_ids=(0, 1),
        graph_backend="emulated",
        ops="native",
        forward="hf",
        shape=ModelShape(**dict.fromkeys(ModelShape.__annotations__, 4)),
        rates=Rates(bytes_per_s=1e12, flops_per_s=1e13),
        environment={
            "case": CASE4.key,
            "resolved_configuration": configuration,
            "python": "3.11",
            "cpu": {"name": "a processor", "threads": 2},
            "gpu": {"uuid": "GPU-0", "name": "none"},
        },
    )
    return msgspec.msgpack.decode(msgspec.msgpack.encode({"type": "ready", "info": asdict(info), "startup_s": 1.0}))


def answering(ready: dict[str, Any], stats: dict[str, Any]) -> Behaviour:
    """A generator that answers as it should, whatever it has told of itself and tells of its counters."""

    def behave(connection: socket.socket) -> None:
        reader = FrameReader()
        connection.sendall(frame(msgspec.msgpack.encode(ready)))
        while data := connection.recv(1 << 16):
            reader.feed(data)
            while (body := reader.next()) is not None:
                message = None if b"hello" in body else decode_to_server(body)
                if isinstance(message, GetStats):
                    connection.sendall(frame(msgspec.msgpack.encode({"type": "stats", "values": stats})))
                elif isinstance(message, Generate):
                    connection.sendall(encode(Token(request_id=message.request_id, id=3)))
                    report = Report(device_ms=1.0, graph_path="exact")
                    connection.sendall(encode(Done(request_id=message.request_id, report=report)))

    return behave


def paths_in(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where in nested objects something lies: every object and every leaf."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from paths_in(item, (*path, key))


def replaced(value: dict[str, Any], path: tuple[str, ...], by: Any) -> dict[str, Any]:
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = by
    return changed


DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
WRONG = (
    *(None, True, -1, 0, 2**63, -(2**63), 1.5, float("nan"), float("inf"), "", "x", "\x1b[2J", "x" * 10_000, b"\xff"),
    *([], [None], [-1, 2**40], {}, {"x": {"y": []}}, {1: 2}, DEEP),
)


def measured(path: Path, directory: Path) -> int:
    flags = ("--prompt-lengths", "2", "--ttft-iterations", "1", "--p99-iterations", "1")
    return run_client(CASE4, [*flags, "--socket", str(path), "--output-dir", str(directory)])


def one_line_or_fine(path: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = measured(path, directory)
    said = capsys.readouterr().err
    assert code in (0, 2)
    assert "\x1b" not in said
    lines = [line for line in said.splitlines() if not line.startswith("earlier results")]
    assert len(lines) == (1 if code else 0) and all(len(line) < 1000 for line in lines), said


def test_generator_that_tells_the_truth_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(answering(facts(), {"counters": {"exact": 1}})) as path:
        assert measured(path, tmp_path) == 0, capsys.readouterr().err


def test_facts_of_wrong_types_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    ready = facts()
    cases = [(path, wrong) for path in paths_in(ready) for wrong in WRONG]
    for place, wrong in random.Random(seed).sample(cases, 200):
        with listening(answering(replaced(ready, place, wrong), {})) as path:
            one_line_or_fine(path, tmp_path, capsys)


@pytest.mark.parametrize("name", ["vocab_size", "max_seq_len", "special_ids", "environment", "rates", "shape", "model"])
def test_fact_of_wrong_type_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in WRONG:
        with listening(answering(replaced(facts(), ("info", name), wrong), {})) as path:
            one_line_or_fine(path, tmp_path, capsys)


def test_counters_of_wrong_types_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = {"counters": {"exact": 1}}
    for place in paths_in(stats):
        for wrong in WRONG:
            with listening(answering(facts(), replaced(stats, place, wrong))) as path:
                one_line_or_fine(path, tmp_path, capsys)


def connect(path: Path, timeout_s: float = 0.3) -> GeneratorClient:
    return GeneratorClient.connect(path, script=SCRIPT, timeout_s=timeout_s, starting_timeout_s=timeout_s)


def test_program_that_accepts_and_says_nothing_is_told() -> None:
    with (
        listening(lambda connection: time.sleep(1.0)) as path,
        pytest.raises(GeneratorSilent, match=r"has said nothing for 0\.3 s: it hangs, or was stopped$"),
    ):
        connect(path)


def test_program_that_trickles_a_message_is_told() -> None:
    def trickle(connection: socket.socket) -> None:
        for byte in frame(msgspec.msgpack.encode(facts()))[:100]:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    with listening(trickle) as path, pytest.raises(GeneratorSilent):
        connect(path)


@pytest.mark.parametrize("sent", [b"HTTP/1.1 400 Bad Request\r\n\r\n", frame(b"\xc1"), frame(b"\x91" * 100_000)])
def test_program_that_is_no_generator_is_one_line(sent: bytes) -> None:
    with listening(lambda connection: connection.sendall(sent)) as path, pytest.raises(UserError) as failure:
        connect(path)
    assert len(str(failure.value)) < 1000 and str(failure.value).isprintable()


def test_program_that_closes_at_once_is_told() -> None:
    with listening(lambda connection: None) as path, pytest.raises(GeneratorLost, match="is gone"):
        connect(path)


def test_generator_that_sends_tokens_without_end_is_told() -> None:
    def pour(connection: socket.socket) -> None:
        connection.sendall(frame(msgspec.msgpack.encode(facts())))
        tokens = bytes(encode(Token(request_id=1, id=3))) * 1000
        while connection.recv(1 << 16):
            for _ in range(20):
                connection.sendall(tokens)

    with listening(pour) as path, closing(connect(path, 5.0)) as client:
        ids: list[int] = []
        with pytest.raises(UserError, match="sends more tokens than were asked for"):
            client.stream(Request(prompt_ids=[1], max_new_tokens=3), ids.append)
        assert ids == [3] * 4


def test_buffers_that_are_none_are_one_line() -> None:
    """A generator that answers every request for buffers with ones that do not exist."""
    cpu = {"type": "cpu", "dtype": "int64", "shape": [4], "offset": 0, "storage_bytes": 32, "descriptor_index": 0}
    wrong = [
        {},
        dict.fromkeys(("ids", "last", "token", "position", "logits"), cpu),
        {name: cpu | {"dtype": "complex32"} for name in ("ids", "last", "token", "position", "logits")},
        {name: cpu | {"shape": [-1, 2**62]} for name in ("ids", "last", "token", "position", "logits")},
    ]
    for buffers in wrong:
        shared = frame(msgspec.msgpack.encode({"type": "shared", "request_id": 1, "buffers": buffers}))

        def lend(connection: socket.socket, shared: bytes = shared) -> None:
            connection.sendall(frame(msgspec.msgpack.encode(facts())) + shared)
            connection.recv(1 << 16)
            time.sleep(0.1)

        with listening(lend) as path, pytest.raises(UserError) as failure:
            SharedBufferClient.connect(path, script=SCRIPT, timeout_s=5.0)
        assert "share" in str(failure.value)
