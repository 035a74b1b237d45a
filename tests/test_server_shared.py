"""``--share-buffers``: the client runs the dynamic operations on the buffers of a real generator."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from toy_clients import end_with_parent
from toy_generator import ToyEngine

from hybridgraph.contract import Report, Request
from hybridgraph.errors import UserError
from hybridgraph.serving.client import GeneratorClient
from hybridgraph.serving.ipc.address import fresh_socket_path
from hybridgraph.serving.ipc.buffers import SHARED_NAMES, import_tensor
from hybridgraph.serving.ipc.channel import ClientChannel
from hybridgraph.serving.ipc.messages import (
    HELLO,
    Cancel,
    DecodeStep,
    Done,
    Failed,
    Finished,
    Generate,
    Heartbeat,
    Prefill,
    Progress,
    Queued,
    Ready,
    Replayed,
    Share,
    Shared,
    Token,
)
from hybridgraph.serving.server import serve
from hybridgraph.serving.shared_client import SharedBufferClient

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "case4_jit_cuda_generator.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
FLAGS = ["--model", "tiny-llama", "--dtype", "float32", "--precapture", "16,8", "--max-graphs", "4"]


@contextmanager
def generator(device: str, ops: str = "native") -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    path = fresh_socket_path()
    command = [sys.executable, str(ROOT / SCRIPT), "--socket", str(path), "--device", device, "--ops", ops, *FLAGS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, preexec_fn=end_with_parent)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening")
        yield path, process
    finally:
        process.kill()
        process.communicate()
        for left in path.parent.iterdir():
            left.unlink()
        path.parent.rmdir()


@pytest.fixture(scope="module", params=["native", "fused"])
def ops(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def path(request: pytest.FixtureRequest, ops: str) -> Iterator[Path]:
    with generator(request.param, ops) as (path, process):
        yield path
        assert process.poll() is None


def answers(client: GeneratorClient | SharedBufferClient, requests: list[Request]) -> list[list[int]]:
    got: list[list[int]] = []
    for request in requests:
        ids: list[int] = []
        client.stream(request, ids.append)
        got.append(ids)
    return got


def a_request(length: int, new: int, temperature: float) -> Request:
    ids = [(7 * index + length) % 250 + 3 for index in range(length)]
    return Request(prompt_ids=ids, max_new_tokens=new, temperature=temperature, seed=length)


# In this order a long prompt comes before shorter ones that have to be captured while they wait.
REQUESTS = [
    a_request(length, new, temperature)
    for length, new, temperature in (
        (8, 1, 0.7), (13, 6, 0.7), (300, 3, 0.0), (40, 6, 0.0), (70, 20, 0.9), (5, 4, 0.0), (170, 2, 0.7), (33, 4, 1.3),
    )
]  # fmt: skip


def test_ids_are_the_same_wherever_the_dynamic_operations_run(path: Path) -> None:
    with closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
        shared = answers(sharing, REQUESTS) + answers(sharing, REQUESTS)
    with closing(GeneratorClient.connect(path, script=SCRIPT)) as client:
        assert shared == answers(client, REQUESTS) * 2


def test_bad_request_never_reaches_the_buffers(path: Path) -> None:
    with closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
        good = answers(sharing, REQUESTS[:1])
        for bad in (Request(prompt_ids=[10**6]), Request(prompt_ids=[]), Request(prompt_ids=[1] * 600)):
            with pytest.raises(UserError):
                sharing.stream(bad, lambda _: None)
        assert answers(sharing, REQUESTS[:1]) == good


def test_reply_to_an_answer_that_was_cancelled_is_not_the_next_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
        good = answers(sharing, REQUESTS[1:2])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sharing._link, "wait_for", interrupt)
            answers(sharing, REQUESTS[2:3])
        assert [answers(sharing, REQUESTS[1:2]) for _ in range(3)] == [good] * 3


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def greeted(path: Path) -> ClientChannel:
    channel = ClientChannel.connect(path, timeout_s=120.0)
    channel.send(HELLO)
    while not isinstance(message := channel.receive(), Ready):
        assert isinstance(message, Progress | Heartbeat), "the first to come sees the generator's start"
    return channel


def lent(channel: ClientChannel) -> dict[str, torch.Tensor]:
    """Buffers that a client has asked for and holds."""
    channel.send(Share(request_id=1))
    descriptors: list[int] = []
    shared = channel.receive(descriptors=descriptors)
    assert isinstance(shared, Shared)
    assert set(shared.buffers) == set(SHARED_NAMES)
    try:
        return {name: import_tensor(handle, descriptors) for name, handle in shared.buffers.items()}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def asked(number: int) -> Generate:
    return Generate(request_id=number, request=Request(prompt_ids=[3], max_new_tokens=1, temperature=0.0, seed=0))


def test_others_wait_for_an_answer_on_lent_buffers_and_not_for_the_lease(path: Path) -> None:
    with closing(greeted(path)) as other, closing(greeted(path)) as lessee:
        lent(lessee)
        other.send(asked(1))
        assert [type(other.receive()) for _ in range(2)] == [Token, Done]
        lessee.send(Prefill(request_id=2, length=4))
        assert isinstance(lessee.receive(), Replayed)
        other.send(asked(2))
        assert other.receive() == Queued(request_id=2, position=1)
        other.send(Prefill(request_id=3, length=3))
        refusal = "this client does not hold the shared buffers"
        assert other.receive() == Failed(request_id=3, kind="request", error=refusal)
        lessee.send(Finished(request_id=2))
        assert [type(other.receive()) for _ in range(2)] == [Token, Done]


def test_client_that_holds_the_engine_and_does_nothing_loses_it_to_who_waits(path: Path) -> None:
    with closing(greeted(path)) as other, closing(greeted(path)) as lessee:
        lent(lessee)
        lessee.send(Prefill(request_id=2, length=4))
        assert isinstance(lessee.receive(), Replayed)
        time.sleep(1.5)
        lessee.send(DecodeStep(request_id=2))
        assert isinstance(lessee.receive(), Replayed), "while nobody waits, it may take as long as it likes"
        other.send(asked(1))
        reason = "others wait for the engine, which was held without being used"
        assert lessee.receive() == Failed(request_id=2, kind="request", error=reason)
        received = [other.receive() for _ in range(3)]
        assert [type(message) for message in received if not isinstance(message, Heartbeat)][-2:] == [Token, Done]
        lessee.send(DecodeStep(request_id=2))
        assert isinstance(lessee.receive(), Failed)
        lessee.send(Prefill(request_id=4, length=4))
        assert isinstance(lessee.receive(), Replayed), "the buffers are its own as before"


def test_answer_has_no_more_steps_than_positions(path: Path) -> None:
    """Else one client could hold the engine without end, whoever waits."""
    with closing(greeted(path)) as lessee:
        lent(lessee)
        lessee.send(Prefill(request_id=2, length=510))
        for _ in range(3):
            lessee.send(DecodeStep(request_id=2))
        assert [type(lessee.receive()) for _ in range(3)] == [Replayed] * 3
        full = Failed(request_id=2, kind="request", error="the answer has all of the 512 positions already")
        assert lessee.receive() == full


def test_buffers_that_were_given_back_are_nobody_elses(path: Path) -> None:
    """Their former client goes on writing what no engine survives, into all of them, while others are answered."""
    with closing(GeneratorClient.connect(path, script=SCRIPT)) as client, closing(greeted(path)) as former:
        expected = answers(client, REQUESTS)
        buffers = lent(former)
        former.send(Cancel(request_id=1))
        writing = threading.Event()
        ending = threading.Event()

        def write() -> None:
            while not ending.is_set():
                for tensor in buffers.values():
                    tensor.fill_(10**9 if tensor.dtype == torch.int64 else torch.nan)
                writing.set()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert writing.wait(60.0)
            with closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
                for _ in range(2):
                    assert answers(client, REQUESTS) == expected
                    assert answers(sharing, REQUESTS) == expected
        finally:
            ending.set()
            thread.join()


def test_ids_and_positions_of_a_client_that_are_outside_end_nothing(path: Path) -> None:
    with closing(greeted(path)) as channel:
        buffers = lent(channel)
        for value in (-1, 2**62, -(2**62)):
            for name in ("ids", "token", "position"):
                buffers[name].fill_(value)
            channel.send(Prefill(request_id=2, length=4))
            channel.send(DecodeStep(request_id=2))
            assert [type(channel.receive()) for _ in range(2)] == [Replayed, Replayed]
            channel.send(Finished(request_id=2))
    with closing(GeneratorClient.connect(path, script=SCRIPT)) as client:
        assert answers(client, REQUESTS[:1])


def test_leases_without_end_leave_nothing(path: Path) -> None:
    """Neither descriptors nor memory, however a lease ends."""
    with closing(GeneratorClient.connect(path, script=SCRIPT)) as client:
        generator = client.stats()
        pid = peer_pid(path)
        for number in range(60):
            with closing(greeted(path)) as channel:
                for _ in range(1 + number % 3):
                    lent(channel)
                if number % 2:
                    channel.send(Cancel(request_id=1))
            if number == 20:
                before = num_descriptors(pid)
        answers(client, REQUESTS[:1])
        assert num_descriptors(pid) <= before + 2
        assert client.stats()["server"]["waiting"] == generator["server"]["waiting"] == 0


def peer_pid(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid


def num_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_buffers_can_be_given_back_without_leaving(path: Path) -> None:
    with closing(greeted(path)) as channel:
        lent(channel)
        for length in (-3, 0, 513):
            channel.send(Prefill(request_id=2, length=length))
            refusal = Failed(request_id=2, kind="request", error=f"a prompt of {length} ids: from 1 to 512")
            assert channel.receive() == refusal
        channel.send(Prefill(request_id=2, length=4))
        channel.send(DecodeStep(request_id=2))
        channel.send(Finished(request_id=2))
        assert [type(channel.receive()) for _ in range(2)] == [Replayed, Replayed]
        channel.send(Cancel(request_id=1))
        channel.send(asked(3))
        assert [type(channel.receive()) for _ in range(2)] == [Token, Done]
        channel.send(DecodeStep(request_id=4))
        assert isinstance(channel.receive(), Failed)


HOLDER = """
import sys
from pathlib import Path
from hybridgraph.serving.shared_client import SharedBufferClient
client = SharedBufferClient.connect(Path(sys.argv[1]), script="")
print("held", flush=True)
sys.stdin.read()
"""


def test_client_that_is_killed_frees_the_engine(path: Path) -> None:
    with closing(GeneratorClient.connect(path, script=SCRIPT)) as client:
        before = answers(client, REQUESTS)
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.communicate()
        start_s = time.monotonic()
        assert answers(client, REQUESTS) == before
        assert time.monotonic() - start_s < 15.0


def test_generator_that_is_killed_is_told_at_once() -> None:
    with generator("cpu") as (path, process), closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
        answers(sharing, REQUESTS[:1])
        process.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        with pytest.raises(UserError, match=f"the generator at {path} is gone"):
            answers(sharing, REQUESTS[:1])
        assert time.monotonic() - killed_s < 5.0


def test_what_an_answer_on_lent_buffers_leaves_is_forgotten_while_the_engine_is_held(tmp_path: Path) -> None:
    calls: list[str] = []

    class Sharing(ToyEngine):
        @contextmanager
        def hold(self) -> Iterator[None]:
            calls.append("hold")
            try:
                yield
            finally:
                calls.append("free")

        def replay_prefill(self, length: int) -> Report:
            calls.append("prefill")
            return Report()

        def forget_overflow(self) -> bool:
            calls.append("forget")
            return False

        def shared_tensors(self) -> dict[str, torch.Tensor]:
            return {name: torch.zeros(4, dtype=torch.int64) for name in SHARED_NAMES}

    def use() -> None:
        with closing(greeted(path)) as channel:
            lent(channel)
            for message in (Prefill(request_id=1, length=3), Finished(request_id=1), Prefill(request_id=2, length=3)):
                channel.send(message)
            assert [type(channel.receive()) for _ in range(2)] == [Replayed, Replayed]
        os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / "new" / "socket"
    client = threading.Thread(target=use)
    assert serve(path, lambda _: Sharing(), on_listening=lambda _: client.start()) == 0  # type: ignore[arg-type]
    client.join()
    assert calls == ["hold", "prefill", "forget", "free"] * 2
