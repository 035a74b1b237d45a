"""Messages, frames, and the address of a generator."""

from __future__ import annotations

import os
import random
import socket
import stat
from pathlib import Path

import pytest

from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.roofline import ModelShape, Rates
from hybridgraph.serving.ipc.address import MAX_PATH_BYTES, fresh_socket_path, listen, peer_uid
from hybridgraph.serving.ipc.channel import FrameReader
from hybridgraph.serving.ipc.connections import Connections
from hybridgraph.serving.ipc.messages import (
    HELLO,
    LENGTH_PREFIX,
    MAX_FRAME_BYTES,
    CpuBuffer,
    CudaBuffer,
    Done,
    Failed,
    FrameTooLarge,
    Generate,
    ProtocolError,
    Ready,
    Shared,
    Token,
    Truncated,
    decode_hello,
    decode_to_client,
    decode_to_server,
    encode,
)

INFO = SourceInfo(
    model="m",
    dtype="float16",
    load_format="dummy",
    device="d",
    vocab_size=10,
    max_seq_len=20,
    special_ids=(1, 2),
    shape=ModelShape(
        num_layers=1,
        hidden_size=2,
        intermediate_size=3,
        num_heads=4,
        num_kv_heads=5,
        head_dim=6,
        vocab_size=7,
        bytes_per_element=2,
    ),
    rates=Rates(bytes_per_s=1e12, flops_per_s=2e12),
    environment={"gpu": {"clocks": [1, 2.5, None, True]}},
)
CUDA = CudaBuffer(
    dtype="float16",
    shape=(3, 4),
    offset=1,
    device=0,
    device_uuid="u",
    memory_handle=b"\x00\xff",
    storage_bytes=64,
    storage_offset_bytes=512,
    counter_handle=b"/c",
    counter_offset=3,
    event_handle=b"e",
    event_sync_required=True,
)
CPU = CpuBuffer(dtype="int64", shape=(1,), offset=0, storage_bytes=8, descriptor_index=2)


def body(frame: bytearray) -> bytes:
    return bytes(frame[LENGTH_PREFIX.size :])


@pytest.mark.parametrize(
    "message",
    [
        Ready(info=INFO, startup_s=1.5),
        Token(request_id=1, id=2**31),
        Done(request_id=1, report=Report(device_ms=1.0, graph_path="padded")),
        Failed(request_id=None, kind="version", error="e"),
        Shared(request_id=1, buffers={"ids": CUDA, "last": CPU}),
    ],
)
def test_messages_survive_the_wire(message: Ready | Token | Done | Failed | Shared) -> None:
    assert decode_to_client(body(encode(message))) == message


def test_decoder_of_random_bytes_raises_protocol_errors_only() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    valid = body(
        encode(Generate(request_id=1, request=Request(prompt_ids=[1, 2, 3], max_new_tokens=1, temperature=0.7, seed=1)))
    )
    refused = 0
    for _ in range(20_000):
        data = bytearray(valid) if draw.random() < 0.5 else bytearray(draw.randbytes(draw.randrange(60)))
        for _ in range(draw.randrange(1, 4)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        for decode in (decode_hello, decode_to_server, decode_to_client):
            try:
                decode(bytes(data))
            except ProtocolError as error:
                assert str(error)
                refused += 1
    assert refused > 40_000


def test_frames_are_cut_wherever_the_stream_was_split() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    bodies = [draw.randbytes(draw.choice((0, 1, 3, 4, 5, 1000))) for _ in range(200)]
    stream = b"".join(LENGTH_PREFIX.pack(len(b)) + b for b in bodies)
    reader, cut, position = FrameReader(), [], 0
    while position < len(stream):
        step = draw.choice((1, 2, 7, 4096))
        reader.feed(stream[position : position + step])
        position += step
        while True:
            holds, body = reader.holds_frame, reader.next()
            assert holds == (body is not None)
            if body is None:
                break
            cut.append(body)
    assert cut == bodies
    reader.finish()


def test_frame_limits() -> None:
    reader = FrameReader()
    reader.feed(LENGTH_PREFIX.pack(MAX_FRAME_BYTES + 1))
    assert reader.holds_frame
    with pytest.raises(FrameTooLarge):
        reader.next()
    with pytest.raises(FrameTooLarge):
        encode(
            Generate(
                request_id=1,
                request=Request(prompt_ids=[0] * MAX_FRAME_BYTES, max_new_tokens=1, temperature=0.0, seed=0),
            )
        )
    cut_off = FrameReader()
    cut_off.feed(encode(HELLO)[:-1])
    assert cut_off.next() is None
    with pytest.raises(Truncated):
        cut_off.finish()


def test_fresh_path_is_private_and_leaves_nothing() -> None:
    with listen() as listener:
        directory = listener.path.parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600
    assert not directory.exists()


def test_missing_directory_is_made_private(tmp_path: Path) -> None:
    with listen(tmp_path / "new" / "socket") as listener:
        assert stat.S_IMODE(listener.path.parent.stat().st_mode) == 0o700
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir(mode=0o700)
    with listen(tmp_path / "mine" / "socket"):
        pass
    assert list((tmp_path / "mine").iterdir()) == [], "what was there, stays"


def test_open_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(UserError, match=r"is not private \(mode 0755\)"), listen(tmp_path / "open" / "socket"):
        pass
    with pytest.raises(UserError, match="no directory"), listen(tmp_path / "a" / "b" / "socket"):
        pass


def test_file_at_the_path_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("precious")
    tmp_path.chmod(0o700)
    with pytest.raises(UserError, match="exists and is no socket"), listen(path):
        pass
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["socket"]


def test_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("s" * MAX_PATH_BYTES)
    with pytest.raises(UserError, match="a socket's path has at most 107"), listen(path):
        pass


def test_path_is_held_by_one_and_a_stale_socket_makes_way(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert path.is_socket()
    with listen(path):
        with pytest.raises(UserError, match=f"a generator is already serving {path}"), listen(path):
            pass
        assert path.is_socket()
    with socket.socket(socket.AF_UNIX) as foreign:  # a server that knows nothing of the lock
        foreign.bind(str(path))
        foreign.listen()
        with pytest.raises(UserError, match=f"a generator is already serving {path}"), listen(path):
            pass
        assert path.is_socket()


def test_client_of_another_user_is_refused() -> None:
    lines: list[str] = []

    def unexpected(*_: object) -> None:
        raise AssertionError("a refused client was heard")

    with listen() as listener, socket.socket(socket.AF_UNIX) as client:
        connections = Connections(
            listener,
            on_hello=unexpected,
            on_message=unexpected,
            on_close=unexpected,
            log=lines.append,
            allowed_uid=os.getuid() + 1,
        )
        client.connect(str(listener.path))
        assert peer_uid(client) == os.getuid()
        client.sendall(encode(HELLO))
        connections.poll(1.0)
        reader = FrameReader()
        reader.feed(client.recv(4096))
        failed = decode_to_client(reader.next() or b"")
        assert failed == Failed(
            request_id=None, kind="protocol", error=f"user id {os.getuid()} may not use this generator"
        )
        assert len(lines) == 1
        connections.close()


def test_fresh_paths_differ() -> None:
    assert fresh_socket_path().parent != fresh_socket_path().parent
