"""Hostile clients of every kind against a generator, with an honest one beside them.

    python -m tests.fuzz_frames --frames 1000000      # about two minutes on two cores

Each attack has a generator of its own, whose standard error nobody reads, and comes from three processes at once.
Beside it one honest client asks without a pause, and another connects, asks and leaves. When the attack has sent its
share of the frames, and goes on, the generator's memory and counters are looked at, and it is told to stop.

Printed is one row an attack. Exit code 1 where any of them crashed the generator, gave a wrong answer, let its memory
or its counters grow, kept an honest client waiting for 2 s, or delayed SIGTERM by 2 s.
The last column tells how busy the machine was with other things.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does

from toy_clients import Toy, client_of, end_with_parent, frame, toy
from toy_generator import VOCAB_SIZE, toy_answer

from hybridgraph.contract import Request
from hybridgraph.errors import UserError
from hybridgraph.serving.ipc.channel import RECEIVE_BYTES
from hybridgraph.serving.ipc.connections import MAX_CLIENTS
from hybridgraph.serving.ipc.messages import (
    HELLO,
    LENGTH_PREFIX,
    MAX_FRAME_BYTES,
    Cancel,
    DecodeStep,
    Finished,
    Generate,
    GetStats,
    Prefill,
    Share,
    encode,
)

PROCESSES = 3
MAX_WAIT_S = MAX_STOP_S = 2.0
MAX_GROWTH_MIB, MAX_STATS_BYTES = 32.0, 10_000
WARM_UP_S = 0.5

Draw = random.Random
Attack = Callable[[Path, Draw], Iterator[int]]  # one round of it, with the number of frames after each sending


@contextmanager
def connected(path: Path, *, greet: bool = True) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(1.0)
        end.connect(str(path))
        if greet:
            end.sendall(encode(HELLO))
        yield end


def valid_frame(draw: Draw) -> bytes:
    """A message as an honest client would send it."""
    ids = [draw.randrange(VOCAB_SIZE) for _ in range(draw.randrange(1, 30))]
    number = draw.randrange(50)
    return bytes(
        encode(
            draw.choice(
                (
                    Generate(request_id=number, request=Request(prompt_ids=ids, max_new_tokens=draw.randrange(1, 4))),
                    Cancel(request_id=number),
                    GetStats(),
                    Share(request_id=number),
                    Prefill(request_id=number, length=len(ids)),
                    DecodeStep(request_id=number),
                    Finished(request_id=number),
                )
            )
        )
    )


def garbage(path: Path, draw: Draw) -> Iterator[int]:
    """Bytes that are no frames, and frames that are cut off."""
    with connected(path, greet=draw.random() < 0.5) as end:
        body = draw.randbytes(draw.randrange(200))
        end.sendall(draw.choice((body, frame(body), frame(body)[:-1], LENGTH_PREFIX.pack(draw.getrandbits(32)) + body)))
        yield 1


def mutated(path: Path, draw: Draw) -> Iterator[int]:
    """Messages with some of their bytes changed."""
    with connected(path) as end:
        for _ in range(20):
            data = bytearray(valid_frame(draw))
            for _ in range(draw.randrange(3)):
                data[draw.randrange(4, len(data))] = draw.randrange(256)
            end.sendall(data)
            yield 1


ODD_VALUES = (None, True, -1, 2**63, 1.5, float("nan"), "", "x\x1b[2J\n", b"\xff", [], [[]], {}, {"a": 1})


def mistyped(path: Path, draw: Draw) -> Iterator[int]:
    """Messages whose fields have other types and values than they should."""
    with connected(path) as end:
        fields = msgspec.msgpack.decode(valid_frame(draw)[LENGTH_PREFIX.size :])
        inner = fields.get("request", fields)
        inner[draw.choice(list(inner))] = draw.choice(ODD_VALUES)
        end.sendall(frame(msgspec.msgpack.encode(fields)))
        yield 1


def enormous(path: Path, draw: Draw) -> Iterator[int]:
    """Frames of the largest size, and of more."""
    with connected(path) as end:
        largest = draw.choice(
            (
                b"\0" * MAX_FRAME_BYTES,
                b"\x91" * MAX_FRAME_BYTES,
                msgspec.msgpack.encode({"type": "x" * (MAX_FRAME_BYTES - 100)}),
                bytes(encode(Generate(request_id=1, request=Request(prompt_ids=[1] * 200_000))))[4:],
            )
        )
        end.sendall(frame(largest))
        end.sendall(LENGTH_PREFIX.pack(MAX_FRAME_BYTES + 1))
        yield 2


def comers(path: Path, draw: Draw) -> Iterator[int]:
    """Connections that come and go."""
    with connected(path, greet=draw.random() < 0.5):
        yield 1


def holders(path: Path, draw: Draw) -> Iterator[int]:
    """Connections that hold every place, silent or greeted, and come again when they are sent away."""
    with ExitStack() as places:
        for _ in range(MAX_CLIENTS):
            places.enter_context(connected(path, greet=draw.random() < 0.7))
            yield 1
        time.sleep(1.0)


def deaf(path: Path, draw: Draw) -> Iterator[int]:
    """Questions in thousands whose answers are never read."""
    asking = bytes(encode(GetStats())) * 100
    with connected(path) as end:
        while True:
            end.sendall(asking)
            yield 100


def greedy(path: Path, draw: Draw) -> Iterator[int]:
    """Requests, questions and cancels in thousands, whose answers are read."""
    frames = b"".join(valid_frame(draw) for _ in range(500))
    with connected(path) as end, read_by_a_thread(end):
        for _ in range(40):
            end.sendall(frames)
            yield 500


@contextmanager
def read_by_a_thread(end: socket.socket) -> Iterator[None]:
    """Throw away what arrives, as long as the block lasts."""

    def read() -> None:
        with suppress(OSError):
            while end.recv(RECEIVE_BYTES):
                pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        reader.join()


def lessees(path: Path, draw: Draw) -> Iterator[int]:
    """Leases taken and never used, used in any order, and never given back."""
    orders = (Prefill(request_id=2, length=3), DecodeStep(request_id=2), Finished(request_id=2), Cancel(request_id=1))
    with connected(path) as end, read_by_a_thread(end):
        end.sendall(encode(Share(request_id=1)))
        yield 1
        for _ in range(draw.randrange(1, 200)):
            end.sendall(encode(draw.choice((*orders, Share(request_id=1), Prefill(request_id=3, length=10**9)))))
            yield 1
        if draw.random() < 0.1:
            end.sendall(encode(Prefill(request_id=4, length=3)))
            yield 1
            time.sleep(0.5)  # holding the engine


SHARES: dict[Attack, float] = {
    garbage: 0.06,
    mutated: 0.10,
    mistyped: 0.05,
    enormous: 0.001,
    comers: 0.06,
    holders: 0.02,
    deaf: 0.25,
    greedy: 0.30,
    lessees: 0.10,
}  # of the frames; the rest is everything at once


def everything(path: Path, draw: Draw) -> Iterator[int]:
    """All of these in turns."""
    yield from draw.choice([attack for attack in SHARES if attack is not holders])(path, draw)


LENDS = {mutated, mistyped, greedy, lessees, everything}  # they ask for leases, among other things
ATTACKS: dict[Attack, float] = SHARES | {everything: 1 - sum(SHARES.values())}


def attacking(attack: Attack, path: Path, seed: int, sent: Synchronized[int], stop: Event) -> None:
    """Attack until ``stop``, from a process of its own."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    draw = random.Random(seed)
    while not stop.is_set():
        try:
            for count in attack(path, draw):
                with sent.get_lock():
                    sent.value += count
                if stop.is_set():
                    return
        except (FileNotFoundError, ConnectionRefusedError):  # the generator has ended
            time.sleep(0.01)
        except OSError:  # it has closed this connection, as it should
            pass


@dataclass
class Outcome:
    """What an attack came to."""

    attack: str
    frames: int = 0
    answers: int = 0
    wrong: int = 0
    refused: int = 0  # newcomers: every place was taken by clients that are served
    errors: list[Exception] = field(default_factory=list)  # of the honest clients
    waits_s: list[float] = field(default_factory=lambda: [0.0])
    newcomer_waits_s: list[float] = field(default_factory=lambda: [0.0])
    growth_mib: float = 0.0
    stats_bytes: int = 0
    stop_s: float = 0.0  # from SIGTERM until it serves nobody any more
    end_s: float = 0.0  # and until the process has ended
    code: int | None = None
    log_lines: int = 0
    machine_s: float = 0.0  # by which a thread that only sleeps was delayed

    def passed(self, slack: float) -> bool:
        return (
            self.code == 0
            and self.wrong == 0
            and self.answers > 0
            and not self.errors
            and max(self.waits_s + self.newcomer_waits_s) < MAX_WAIT_S * slack
            and self.stop_s < MAX_STOP_S * slack
            and self.growth_mib < MAX_GROWTH_MIB
            and self.stats_bytes < MAX_STATS_BYTES
        )

    def row(self) -> str:
        cells = (
            self.attack,
            f"{self.frames:,}",
            f"{self.answers:,}",
            self.wrong,
            f"{max(self.waits_s):.2f}",
            f"{max(self.newcomer_waits_s):.2f}",
            self.refused,
            f"{self.growth_mib:+.1f}",
            self.stats_bytes,
            self.log_lines,
            f"{self.stop_s:.2f}",
            f"{self.end_s:.2f}",
            "crashed" if self.code else "0",
            f"{self.machine_s:.2f}",
        )
        return "| " + " | ".join(map(str, cells)) + " |"


HEADINGS = (
    "attack",
    "frames",
    "honest answers",
    "wrong",
    "worst wait, s",
    "of newcomers, s",
    "newcomers refused",
    "memory, MiB",
    "`Stats`, bytes",
    "lines logged",
    "SIGTERM heeded, s",
    "ended, s",
    "exit code",
    "machine's delay, s",
)


class Honest:
    """Asks what it knows the answer of, again and again, in two ways, until it is told to end."""

    def __init__(self, path: Path, seed: int, outcome: Outcome) -> None:
        self._path = path
        self._outcome = outcome
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._noting_errors, args=(work, random.Random(seed)))
            for work in (self._stay, self._come_and_go, self._only_sleep)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _noting_errors(self, work: Callable[[Draw], None], draw: Draw) -> None:
        try:
            work(draw)
        except Exception as error:
            print(f"{self._outcome.attack}: an honest client failed: {error!r}", file=sys.stderr)
            self._outcome.errors.append(error)

    def _stay(self, draw: Draw) -> None:
        with client_of(self._path, timeout_s=60.0) as client:
            while not self._ending.is_set():
                self._ask(client.stream, draw, self._outcome.waits_s, time.monotonic())
                time.sleep(0.01)

    def _come_and_go(self, draw: Draw) -> None:
        while not self._ending.is_set():
            begun_s = time.monotonic()
            try:
                with client_of(self._path, timeout_s=60.0) as client:
                    self._ask(client.stream, draw, self._outcome.newcomer_waits_s, begun_s)
            except UserError as error:
                if "connected already" not in str(error):
                    raise
                self._outcome.refused += 1
            time.sleep(0.05)

    def _only_sleep(self, draw: Draw) -> None:
        """Notice how long this machine lets a thread wait that asks nothing of any generator."""
        while not self._ending.is_set():
            begun_s = time.monotonic()
            time.sleep(0.01)
            self._outcome.machine_s = max(self._outcome.machine_s, time.monotonic() - begun_s - 0.01)

    def _ask(self, stream: Callable[..., object], draw: Draw, waits_s: list[float], begun_s: float) -> None:
        request = Request(prompt_ids=[draw.randrange(VOCAB_SIZE)] * draw.randrange(1, 9), max_new_tokens=3, seed=7)
        ids: list[int] = []
        stream(request, ids.append)
        waits_s.append(time.monotonic() - begun_s)
        self._outcome.answers += 1
        self._outcome.wrong += ids != toy_answer(request.prompt_ids, 3, 7)


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Assault:
    """An attack on one generator, by processes of its own, from its beginning to ``end``."""

    def __init__(self, attack: Attack, path: Path, seed: int) -> None:
        self._sent: Synchronized[int] = multiprocessing.Value("q", 0)
        self._stop = multiprocessing.Event()
        self._processes = [
            multiprocessing.Process(target=attacking, args=(attack, path, seed + number, self._sent, self._stop))
            for number in range(PROCESSES)
        ]
        for process in self._processes:
            process.start()

    @property
    def num_sent(self) -> int:
        """Frames so far."""
        assert all(process.is_alive() for process in self._processes)
        return self._sent.value

    def end(self) -> None:
        self._stop.set()
        for process in self._processes:
            process.join()


def withstood(attack: Attack, frames: int, seed: int) -> Outcome:
    """Let ``attack`` send its frames to a generator of its own, and look at what that did."""
    outcome = Outcome(attack.__name__)
    with toy("--harmless") as generator:
        if attack in LENDS:
            lend_once(generator.path)
        honest = Honest(generator.path, seed, outcome)
        assault = Assault(attack, generator.path, seed)
        try:
            time.sleep(WARM_UP_S)
            before_mib = resident_mib(generator.process.pid)
            while assault.num_sent < frames and generator.process.poll() is None:
                time.sleep(0.05)
            honest.end()
            outcome.frames = assault.num_sent
            outcome.growth_mib = resident_mib(generator.process.pid) - before_mib
            look_at_the_end(generator, outcome)
        finally:
            assault.end()
    return outcome


def lend_once(path: Path) -> None:
    """Let a generator load what it needs for its first lease: that is no growth under attack."""
    with connected(path) as first:
        first.sendall(encode(Share(request_id=1)))
        first.settimeout(60.0)
        while b"shared" not in first.recv(RECEIVE_BYTES):
            pass


def look_at_the_end(generator: Toy, outcome: Outcome) -> None:
    """Ask a generator under attack for its counters, tell it to stop, and read what it has said."""
    with client_of(generator.path, timeout_s=60.0) as client:
        outcome.stats_bytes = len(msgspec.msgpack.encode(client.stats()))
    generator.process.send_signal(signal.SIGTERM)
    begun_s = time.monotonic()
    while generator.path.exists():
        time.sleep(0.005)
    outcome.stop_s = time.monotonic() - begun_s
    _, log = generator.process.communicate(timeout=60.0)
    outcome.code, outcome.end_s = generator.process.returncode, time.monotonic() - begun_s
    outcome.log_lines = len(log.splitlines())
    if "Traceback" in log:
        outcome.code = outcome.code or 1
        print(log, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--attack", choices=[attack.__name__ for attack in ATTACKS], help="only this one")
    parser.add_argument("--slack", type=float, default=1.0, help="how much slower this machine may be")
    options = parser.parse_args()
    print(f"seed {options.seed}, {PROCESSES} attacking processes at a time\n")
    print("| " + " | ".join(HEADINGS) + " |\n|" + " --- |" * len(HEADINGS), flush=True)
    outcomes = []
    for attack, share in ATTACKS.items():
        if options.attack in (None, attack.__name__):
            frames = options.frames if options.attack else round(options.frames * share)
            outcomes.append(withstood(attack, frames, options.seed))
            print(outcomes[-1].row(), flush=True)
    failed = [outcome.attack for outcome in outcomes if not outcome.passed(options.slack)]
    print(f"\n{sum(outcome.frames for outcome in outcomes):,} frames; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
