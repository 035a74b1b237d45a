"""Toy generators in processes of their own, and clients that say exactly what a test wants them to."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from toy_generator import toy_answer

from hybridgraph.contract import Request
from hybridgraph.serving.client import GeneratorClient, OnQueued
from hybridgraph.serving.ipc.address import fresh_socket_path, remove_left_behind
from hybridgraph.serving.ipc.channel import ClientChannel
from hybridgraph.serving.ipc.messages import HELLO, LENGTH_PREFIX, Generate, Ready, ToClient
from hybridgraph.system.console import no_op

SCRIPT = "case4_jit_cuda_generator.py"
ROOT = Path(__file__).resolve().parents[1]
OWN_PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
TIMEOUT_S = 20.0  # for what takes milliseconds where nothing else runs


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """In a child that has just been forked: let the kernel end it when its parent is gone, even if that was killed."""
    set_parent_death_signal = 1  # prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, number)


class Toy:
    """A toy generator in a process of its own; ``popen`` are further arguments of Popen."""

    def __init__(self, path: Path, *options: str, **popen: Any) -> None:
        self.path = path
        command = [sys.executable, str(ROOT / "tests" / "toy_generator.py"), str(path), *options]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(
            command, text=True, env=environment, **OWN_PIPES | {"preexec_fn": end_with_parent} | popen
        )

    def wait_for(self, line: str) -> Toy:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == line
        return self

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Its exit code, the rest of its output, and its log."""
        self.process.send_signal(number)
        output, log = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, output, log


@contextmanager
def toy(*options: str, path: Path | None = None, ready: bool = True, **popen: Any) -> Iterator[Toy]:
    """A running toy generator, on a path of its own unless one is given."""
    fresh = fresh_socket_path()
    generator = Toy(path or fresh, *options, **popen)
    try:
        generator.wait_for("listening")
        yield generator.wait_for("ready") if ready else generator
    finally:
        generator.process.kill()
        generator.process.communicate()
        remove_left_behind(fresh)


@contextmanager
def surviving_toy(*options: str) -> Iterator[Path]:
    """A toy generator that has to survive everything that is done to it within the block."""
    with toy(*options) as generator:
        yield generator.path
        assert generator.process.poll() is None


@contextmanager
def client_of(path: Path, on_queued: OnQueued = no_op, timeout_s: float = TIMEOUT_S) -> Iterator[GeneratorClient]:
    with closing(GeneratorClient.connect(path, script=SCRIPT, timeout_s=timeout_s, on_queued=on_queued)) as client:
        yield client


@contextmanager
def channel_to(path: Path, *, greet: bool = True) -> Iterator[ClientChannel]:
    with closing(ClientChannel.connect(path, timeout_s=TIMEOUT_S)) as channel:
        if greet:
            channel.send(HELLO)
            assert isinstance(channel.receive(), Ready)
        yield channel


def ask(client: GeneratorClient, prompt_ids: list[int], count: int = 1, seed: int = 0) -> list[int]:
    ids: list[int] = []
    client.stream(Request(prompt_ids=prompt_ids, max_new_tokens=count, seed=seed), ids.append)
    return ids


def generate(request_id: int, prompt_ids: list[int], count: int = 1) -> Generate:
    return Generate(
        request_id=request_id, request=Request(prompt_ids=prompt_ids, max_new_tokens=count, temperature=0.0, seed=0)
    )


def assert_serves(path: Path) -> None:
    with client_of(path) as client:
        assert ask(client, [1, 2], 3) == toy_answer([1, 2], 3, 0)


def receive_until(channel: ClientChannel, kind: type[ToClient]) -> list[ToClient]:
    received = [channel.receive()]
    while not isinstance(received[-1], kind):
        received.append(channel.receive())
    return received


def frame(body: bytes) -> bytes:
    return LENGTH_PREFIX.pack(len(body)) + body
