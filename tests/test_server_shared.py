"""``--share-buffers``: the client runs the dynamic operations on the buffers of a real generator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from hybridgraph.contract import Report, Request
from hybridgraph.errors import UserError
from hybridgraph.serving.client import GeneratorClient
from hybridgraph.serving.ipc.address import fresh_socket_path
from hybridgraph.serving.ipc.buffers import SHARED_NAMES
from hybridgraph.serving.ipc.channel import ClientChannel
from hybridgraph.serving.ipc.messages import (
    HELLO,
    Cancel,
    DecodeStep,
    Done,
    Failed,
    Finished,
    Generate,
    Prefill,
    Progress,
    Queued,
    Ready,
    Replayed,
    Share,
    Shared,
    Token,
)
from hybridgraph.serving.lease import Lease
from hybridgraph.serving.shared_client import SharedBufferClient

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "case4_jit_cuda_generator.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
FLAGS = ["--model", "tiny-llama", "--dtype", "float32", "--precapture", "16,8", "--max-graphs", "4"]


@contextmanager
def generator(device: str, ops: str = "native") -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    path = fresh_socket_path()
    command = [sys.executable, str(ROOT / SCRIPT), "--socket", str(path), "--device", device, "--ops", ops, *FLAGS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
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


def test_the_same_ids_wherever_the_dynamic_operations_run(path: Path) -> None:
    with closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
        shared = answers(sharing, REQUESTS) + answers(sharing, REQUESTS)
    with closing(GeneratorClient.connect(path, script=SCRIPT)) as client:
        assert shared == answers(client, REQUESTS) * 2


def test_a_bad_request_never_reaches_the_buffers(path: Path) -> None:
    with closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
        good = answers(sharing, REQUESTS[:1])
        for bad in (Request(prompt_ids=[10**6]), Request(prompt_ids=[]), Request(prompt_ids=[1] * 600)):
            with pytest.raises(UserError):
                sharing.stream(bad, lambda _: None)
        assert answers(sharing, REQUESTS[:1]) == good


def test_a_reply_to_an_answer_that_was_given_up_is_not_the_next_ones(
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
        assert isinstance(message, Progress), "the first to come sees the generator's start"
    return channel


def test_others_wait_until_the_buffers_are_given_back(path: Path) -> None:
    with closing(greeted(path)) as other:
        with closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
            other.send(
                Generate(request_id=1, request=Request(prompt_ids=[3], max_new_tokens=1, temperature=0.0, seed=0))
            )
            assert other.receive() == Queued(request_id=1, position=1)
            other.send(Prefill(request_id=2, length=3))
            refused = other.receive()
            assert isinstance(refused, Failed)
            assert refused.error == "this client does not hold the shared buffers"
            answers(sharing, REQUESTS[:2])
        assert isinstance(other.receive(), Token)
        assert isinstance(other.receive(), Done)


def test_buffers_can_be_given_back_without_leaving(path: Path) -> None:
    with closing(greeted(path)) as channel:
        channel.send(Share(request_id=1))
        descriptors: list[int] = []
        shared = channel.receive(descriptors=descriptors)
        assert isinstance(shared, Shared)
        assert set(shared.buffers) == set(SHARED_NAMES)
        for descriptor in descriptors:
            os.close(descriptor)
        for length in (-3, 0, 513):
            channel.send(Prefill(request_id=2, length=length))
            refusal = Failed(request_id=2, kind="request", error=f"a prompt of {length} ids: from 1 to 512")
            assert channel.receive() == refusal
        channel.send(Prefill(request_id=2, length=4))
        channel.send(DecodeStep(request_id=2))
        channel.send(Finished(request_id=2))
        assert [type(channel.receive()) for _ in range(2)] == [Replayed, Replayed]
        channel.send(Cancel(request_id=1))
        channel.send(Generate(request_id=3, request=Request(prompt_ids=[3], max_new_tokens=1, temperature=0.0, seed=0)))
        received = channel.receive()
        while isinstance(received, Queued):
            received = channel.receive()
        assert isinstance(received, Token)


HOLDER = """
import sys
from pathlib import Path
from hybridgraph.serving.shared_client import SharedBufferClient
client = SharedBufferClient.connect(Path(sys.argv[1]), script="")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_holder_frees_the_engine(path: Path) -> None:
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
        assert time.monotonic() - start_s < 5.0


def test_a_killed_generator_is_told_within_a_second() -> None:
    with generator("cpu") as (path, process), closing(SharedBufferClient.connect(path, script=SCRIPT)) as sharing:
        answers(sharing, REQUESTS[:1])
        process.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        with pytest.raises(UserError, match=f"the generator at {path} is gone"):
            answers(sharing, REQUESTS[:1])
        assert time.monotonic() - killed_s < 1.0


def test_what_an_answer_on_lent_buffers_leaves_is_forgotten_while_they_are_held() -> None:
    calls: list[str] = []

    class Sharing:
        @contextmanager
        def hold(self) -> Iterator[None]:
            calls.append("hold")
            yield
            calls.append("free")

        def replay_prefill(self, length: int) -> Report:
            calls.append("prefill")
            return Report()

        def replay_decode(self) -> None:
            pass

        def forget_overflow(self) -> bool:
            calls.append("forget")
            return False

        def shared_tensors(self) -> dict[str, torch.Tensor]:
            return {}

    with Lease(Sharing()) as lease:
        for message in (Prefill(request_id=1, length=3), Finished(request_id=1), Prefill(request_id=1, length=3)):
            lease.replay(message, print)
    assert calls == ["hold", "prefill", "forget", "free"] * 2
