"""A generator in long use: four clients, mixed lengths, cancels, leases, and captures in the background all the while.

    python -m tests.soak --requests 100000                                  # about five minutes on two cores
    python -m tests.soak --seconds 600 --device cuda --model llama-2-7b --forward fused --max-graphs 50

Flags that are not its own go to the generator, which by default serves a tiny model on the CPU, with emulated graphs.
Printed is a row for each tenth of the way. Exit code 1 where an answer differed from the first one to the same request,
memory or counters grew after the first tenth, a request took 2 s on a tiny model, or SIGTERM took as long.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does

from architectures import ARCHITECTURES, SMALL
from toy_clients import ROOT, SCRIPT, end_with_parent

from hybridgraph.contract import Request
from hybridgraph.errors import UserError
from hybridgraph.serving.client import GeneratorClient
from hybridgraph.serving.ipc.address import fresh_socket_path, remove_left_behind
from hybridgraph.serving.shared_client import SharedBufferClient

NUM_CLIENTS, NUM_DISTINCT, NUM_ROWS = 4, 400, 10
MAX_LENGTH, MAX_NEW_TOKENS = 80, 5
MAX_WAIT_S = MAX_STOP_S = 2.0
MAX_GROWTH_MIB, MAX_GPU_GROWTH = 16.0, 0.01
TINY = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
HEADINGS = ("requests", "wrong", "cancelled", "captures", "worst wait, s", "memory, MiB", "GPU, MiB", "`Stats`, bytes")

Client = GeneratorClient | SharedBufferClient


class Cancelled(Exception):
    """Raised in the middle of an answer that is not wanted any more."""


@dataclass
class Row:
    """The state after a part of the way."""

    requests: int
    wrong: int
    cancelled: int
    captures: int
    worst_wait_s: float
    memory_mib: float
    gpu_mib: float
    stats_bytes: int

    def __str__(self) -> str:
        cells = (
            f"{self.requests:,}",
            self.wrong,
            f"{self.cancelled:,}",
            f"{self.captures:,}",
            f"{self.worst_wait_s:.2f}",
            f"{self.memory_mib:.1f}",
            f"{self.gpu_mib:.0f}",
            f"{self.stats_bytes:,}",
        )
        return "| " + " | ".join(map(str, cells)) + " |"


@dataclass
class Soak:
    """What all clients share: the requests, their first answers, and what has come of them so far."""

    path: Path
    distinct: list[Request]
    first: dict[int, list[int]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ending: threading.Event = field(default_factory=threading.Event)
    errors: list[Exception] = field(default_factory=list)
    requests: int = 0
    wrong: int = 0
    cancelled: int = 0
    worst_wait_s: float = 0.0  # of the present part

    def count(self, number: int, ids: list[int], wait_s: float, *, cancelled: bool) -> None:
        with self.lock:
            self.requests += 1
            self.cancelled += cancelled
            self.worst_wait_s = max(self.worst_wait_s, wait_s)
            expected = ids if cancelled and number not in self.first else self.first.setdefault(number, ids)
            if expected[: len(ids)] != ids or not (cancelled or len(ids) == len(expected)):
                self.wrong += 1
                print(f"request {number}: {ids} after {expected}", file=sys.stderr)

    def be_a_client(self, number: int, seed: int) -> None:
        """Ask until the end, or an error; one of the clients works on lent buffers."""
        try:
            self._ask_until_the_end(GeneratorClient if number else SharedBufferClient, random.Random(seed))
        except Exception as error:
            self.errors.append(error)

    def _ask_until_the_end(self, kind: type[Client], draw: random.Random) -> None:
        """Ask, at times over a new connection."""
        while not self.ending.is_set():
            with closing(kind.connect(self.path, script=SCRIPT)) as client:
                for _ in range(draw.randrange(1, 400)):
                    if self.ending.is_set():
                        return
                    self._ask(client, draw)

    def _ask(self, client: Client, draw: random.Random) -> None:
        number = draw.randrange(len(self.distinct))
        request = self.distinct[number]
        cancel_after = draw.randrange(1, 1 + request.max_new_tokens) if draw.random() < 0.05 else None
        ids: list[int] = []

        def emit(token_id: int) -> None:
            ids.append(token_id)
            if len(ids) == cancel_after:
                raise Cancelled

        begun_s = time.monotonic()
        with suppress(Cancelled):
            client.stream(request, emit)
        self.count(number, ids, time.monotonic() - begun_s, cancelled=cancel_after is not None)
        if draw.random() < 0.01:
            self._ask_what_is_refused(client)

    def _ask_what_is_refused(self, client: Client) -> None:
        try:
            client.stream(Request(prompt_ids=[10**6]), lambda token_id: None)
        except UserError as error:
            assert "is outside the vocabulary" in str(error), error
        else:
            raise AssertionError("an id outside the vocabulary was answered")


def distinct_requests(seed: int) -> list[Request]:
    draw = random.Random(seed)
    return [
        Request(
            prompt_ids=[draw.randrange(3, 200) for _ in range(draw.randrange(1, MAX_LENGTH))],
            max_new_tokens=draw.choice((1, 1, 1, draw.randrange(1, MAX_NEW_TOKENS + 1))),
            temperature=draw.choice((0.0, 0.7)),
            seed=number,
        )
        for number in range(NUM_DISTINCT)
    ]


@contextmanager
def generator(flags: Sequence[str]) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A real generator, whose graphs are never enough for the lengths that are asked for."""
    path = fresh_socket_path()
    with tempfile.TemporaryDirectory() as directory:
        config = SMALL | ARCHITECTURES["llama-gqa"] | TINY
        Path(directory, "config.json").write_bytes(
            msgspec.json.encode(config | {"architectures": ["LlamaForCausalLM"]})
        )
        own = ("--device", "cpu", "--model", directory, "--max-graphs", "20", "--precapture", "10,20,40,80")
        command = [sys.executable, str(ROOT / SCRIPT), "--socket", str(path), "--load-format", "dummy", *own, *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, preexec_fn=end_with_parent)
        try:
            assert process.stdout is not None and process.stdout.readline().startswith(b"listening")
            yield path, process
        finally:
            process.kill()
            process.communicate()
            remove_left_behind(path)


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def gpu_mib() -> float:
    """What all processes use of the GPU, where there is one."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def state(soak: Soak, pid: int) -> Row:
    with closing(GeneratorClient.connect(soak.path, script=SCRIPT)) as client:
        stats = client.stats()
    worst_wait_s, soak.worst_wait_s = soak.worst_wait_s, 0.0
    return Row(
        requests=soak.requests,
        wrong=soak.wrong,
        cancelled=soak.cancelled,
        captures=stats["captures"],
        worst_wait_s=worst_wait_s,
        memory_mib=resident_mib(pid),
        gpu_mib=gpu_mib(),
        stats_bytes=len(msgspec.msgpack.encode(stats)),
    )


def soaked(soak: Soak, pid: int, requests: int, seconds: float, seed: int) -> list[Row]:
    """Let the clients ask until ``requests`` are answered or ``seconds`` are over; a row for each tenth of the way."""
    clients = [threading.Thread(target=soak.be_a_client, args=(n, seed + n), daemon=True) for n in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    rows: list[Row] = []
    begun_s = time.monotonic()
    try:
        while len(rows) < NUM_ROWS:
            if soak.errors:
                raise soak.errors[0]
            time.sleep(0.05)
            done = max(soak.requests / requests, (time.monotonic() - begun_s) / seconds)
            if done >= (len(rows) + 1) / NUM_ROWS:
                rows.append(state(soak, pid))
                print(rows[-1], flush=True)
    finally:
        soak.ending.set()
        for client in clients:
            client.join()
    return rows


def failures(rows: Sequence[Row], stop_s: float, slack: float) -> list[str]:
    """What of the last row should not be, compared with the first."""
    first, last = rows[0], rows[-1]
    found = {
        "wrong answers": last.wrong > 0,
        "memory": last.memory_mib - first.memory_mib > MAX_GROWTH_MIB,
        "GPU memory": last.gpu_mib > first.gpu_mib * (1 + MAX_GPU_GROWTH),
        "counters": last.stats_bytes > 1.2 * first.stats_bytes,
        "waits": max(row.worst_wait_s for row in rows[1:]) > MAX_WAIT_S * slack,
        "SIGTERM": stop_s > MAX_STOP_S * slack,
    }
    return [name for name, failed in found.items() if failed]


def stopped(process: subprocess.Popen[bytes], path: Path) -> float:
    """Tell the generator to stop; returns the seconds until it serves nobody any more."""
    process.send_signal(signal.SIGTERM)
    begun_s = time.monotonic()
    while path.exists():
        time.sleep(0.005)
    stop_s = time.monotonic() - begun_s
    assert process.wait(60.0) == 0
    return stop_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="end after so long, whatever was answered")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--slack", type=float, default=1.0, help="how much slower this machine may be")
    options, flags = parser.parse_known_args()
    print(f"seed {options.seed}, {NUM_CLIENTS} clients\n")
    with generator(flags) as (path, process):
        soak = Soak(path, distinct_requests(options.seed))
        print("| " + " | ".join(HEADINGS) + " |\n|" + " --- |" * len(HEADINGS), flush=True)
        rows = soaked(soak, process.pid, options.requests, options.seconds, options.seed)
        stop_s = stopped(process, path)
    failed = failures(rows, stop_s, options.slack)
    print(f"\nSIGTERM heeded in {stop_s:.2f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
