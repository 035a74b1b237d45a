"""The generator as a server: one engine, one thread, any number of clients, one request at a time.

The engine runs in the thread that serves the sockets, so that nothing lies between a request's
arrival and the first kernel it launches. Between two tokens, and whenever the starting engine
reports progress, the loop looks at the sockets without waiting.

The life of a request: Generate arrives → it waits in order (Queued) → the engine checks it →
each id is sent when it exists (Token) → Done with the engine's report, or Failed with the reason.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridgraph.contract import Request
from hybridgraph.errors import UserError, one_line
from hybridgraph.serving.ipc.address import Listener, listen
from hybridgraph.serving.ipc.channel import IDLE_SPIN_S, SPIN_S
from hybridgraph.serving.ipc.connections import HELLO_TIMEOUT_S, Connection, Connections
from hybridgraph.serving.ipc.messages import (
    Cancel,
    Done,
    Failed,
    FailureKind,
    Generate,
    GetStats,
    Progress,
    Ready,
    Share,
    Shared,
    Stats,
    Token,
    ToServer,
)
from hybridgraph.serving.lease import Lease, LeaseMessage
from hybridgraph.serving.queue import Job, Line
from hybridgraph.system.console import OnProgress, nobody, say
from hybridgraph.system.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from hybridgraph.engine.engine import HybridEngine  # whose torch is imported by who opens it

MAX_WAITING_PER_CLIENT = 64


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long what is waited for, in seconds."""

    hello_s: float = HELLO_TIMEOUT_S  # a client's introduction
    finish_s: float = 2.0  # an answer in flight, but not on lent buffers, when the generator is told to stop
    remind_s: float = 60.0  # before who waits in line hears of it again: much less than a client bears silence


def log_to_stderr(text: str) -> None:
    say(f"generator: {text}")


def serve(
    path: Path | None,
    open_engine: Callable[[OnProgress], HybridEngine],
    *,
    on_listening: Callable[[Path], None] = nobody,
    on_ready: Callable[[], None] = nobody,
    log: Callable[[str], None] = log_to_stderr,
    patience: Patience = Patience(),
) -> int:
    """Open an engine and serve it at ``path``, or a fresh one, until SIGTERM, SIGINT or SIGHUP.

    Returns the process's exit code (0, 130 or 129). ``open_engine`` is given a callback for its progress; clients
    may connect, and see it, from the first call on. What it raises reaches them as Failed and is raised again here.
    Must be called from the main thread, which receives signals.
    """
    # Signals first, and last: one that ended this process in between would leave the socket.
    with StopSignals() as stop, listen(path) as listener, closing(Server(listener, stop, log, patience)) as server:
        on_listening(listener.path)
        try:
            with stop.at_once():
                engine = open_engine(server.show_progress)
        except (Stopped, Exception) as error:
            if stop.received is not None:  # whatever a library has made of being interrupted
                server.end_all("stopped", "the generator was stopped before it was ready")
                return stop.exit_code
            server.end_all("start", one_line(error))
            raise
        with closing(engine):
            server.run(engine, on_ready)
        return stop.exit_code


class _Interrupted(Exception):
    """The answer in flight must not go on."""

    def __init__(self, kind: FailureKind, text: str) -> None:
        super().__init__(text)
        self.kind: FailureKind = kind


class Server:
    """Who holds the engine, who waits for it, and what every message does."""

    def __init__(self, listener: Listener, stop: StopSignals, log: Callable[[str], None], patience: Patience) -> None:
        self._stop = stop
        self._log = log
        self._patience = patience
        self._started_s = time.perf_counter()
        self._connections = Connections(
            listener,
            on_hello=self._greet,
            on_message=self._receive,
            on_close=lambda connection: self._line.forget(connection),
            log=log,
            hello_timeout_s=patience.hello_s,
        )
        self._connections.watch(stop.wake, lambda: stop.wake.recv(64))
        self._engine: HybridEngine | None = None
        self._line = Line(lambda job, ahead: self._connections.send(job.connection, job.queued(ahead)))
        self._lease: Lease | None = None
        self._answered_s = -math.inf  # when a client was last given what it asked for
        self._state: Progress | Ready | Failed = Progress(stage="starting", done=0, total=0)
        self._counts = Counter(clients=0, done=0, failed=0, cancelled=0)

    def show_progress(self, stage: str, done: int, total: int) -> None:
        """Tell every client how far the engine's start is, and let new ones in."""
        self._state = Progress(stage=stage, done=done, total=total)
        self._connections.broadcast(self._state)
        self._connections.poll(0.0)
        if self._stop.received is not None:
            raise Stopped

    def run(self, engine: HybridEngine, on_ready: Callable[[], None]) -> None:
        """Answer requests in the order of their arrival until a signal to stop."""
        self._engine = engine
        # What lives now lives until the end: a collection must not walk it while a request waits.
        gc.collect()
        gc.freeze()
        self._state = Ready(info=engine.info, startup_s=time.perf_counter() - self._started_s)
        self._connections.broadcast(self._state)
        on_ready()
        while self._stop.received is None:
            if (job := self._line.next()) is not None:
                self._serve(engine, job)
                self._answered_s = time.perf_counter()
            else:
                self._wait(engine)
        self.end_all("stopped", "the generator was stopped")

    def end_all(self, kind: FailureKind, error: str) -> None:
        """Tell every waiting request, then every client, why there will be no answer."""
        for job in self._line.clear():
            self._fail(job, kind, error)
        self._state = Failed(request_id=None, kind=kind, error=error)
        self._connections.broadcast(self._state)
        for _ in range(2):  # accepts all pending connections, then reads their Hello and tells them too
            self._connections.poll(0.0)

    def close(self) -> None:
        self._connections.close()

    def _wait(self, engine: HybridEngine) -> None:
        """For something to happen: at first without sleeping, but not for long while a capture needs the GIL."""
        spin_s = SPIN_S if engine.is_capturing else IDLE_SPIN_S
        self._poll(0.0 if time.perf_counter() < self._answered_s + spin_s else None)

    def _poll(self, timeout_s: float | None) -> None:
        """See to the sockets. Who waits in line hears of it from time to time: silence would mean that we are gone."""
        waits_s = self._patience.remind_s if timeout_s is None and len(self._line) else timeout_s
        self._connections.poll(waits_s)
        self._line.remind(self._patience.remind_s)

    def _serve(self, engine: HybridEngine, job: Job) -> None:
        try:
            if job.request is None:
                self._lend(engine, job)
            else:
                self._answer(engine, job, job.request)
        except _Interrupted as interruption:
            self._fail(job, interruption.kind, str(interruption))
        except UserError as error:
            self._fail(job, "request", one_line(error))
        except Exception as error:
            self._log(f"a request failed in the engine: {one_line(error)}")
            self._fail(job, "engine", one_line(error))
            self._require_usable(engine)
        finally:
            self._line.holder = None

    def _require_usable(self, engine: HybridEngine) -> None:
        """Raise UserError, and tell every client, where no later request could be answered either."""
        try:
            engine.require_usable()
        except Exception as error:
            reason = f"the device can no longer be used ({one_line(error)}): start the generator again"
            self.end_all("engine", reason)
            raise UserError(reason) from None

    def _answer(self, engine: HybridEngine, job: Job, request: Request) -> None:
        def emit(token_id: int) -> None:
            self._connections.send(job.connection, Token(request_id=job.request_id, id=token_id))
            self._look_around(job)

        report = engine.stream(request, emit)
        self._counts["done"] += 1
        self._connections.send(job.connection, Done(request_id=job.request_id, report=report))

    def _look_around(self, job: Job) -> None:
        """See to the sockets without waiting; raises _Interrupted where the answer must not go on."""
        self._poll(0.0)
        if job.cancelled or not job.connection.open:
            raise _Interrupted("cancelled", "the request was cancelled")
        if self._stop.received is not None and time.monotonic() > self._stop.received_s + self._patience.finish_s:
            raise _Interrupted("stopped", "the generator was stopped before the answer was complete")

    def _lend(self, engine: HybridEngine, job: Job) -> None:
        """Export the static buffers to one client, and replay for it until it gives the engine back."""
        with Lease(engine) as lease:
            reply = Shared(request_id=job.request_id, buffers=lease.handles)
            self._connections.send_with_descriptors(job.connection, reply, lease.descriptors)
            self._lease = lease
            try:
                while job.connection.open and not job.cancelled and self._stop.received is None:
                    self._wait(engine)
            finally:
                self._lease = None

    def _greet(self, connection: Connection) -> None:
        self._counts["clients"] += 1
        self._connections.send(connection, self._state)

    def _receive(self, connection: Connection, message: ToServer) -> None:
        if isinstance(message, Generate):
            self._enqueue(connection, message.request_id, message.request)
        elif isinstance(message, Share):
            self._enqueue(connection, message.request_id, None)
        elif isinstance(message, LeaseMessage):
            self._replay(connection, message)
        elif isinstance(message, Cancel):
            self._cancel(connection, message.request_id)
        elif isinstance(message, GetStats):
            self._connections.send(connection, Stats(values=self._stats()))
        else:
            self._connections.drop(connection, "protocol", "a second Hello")

    def _enqueue(self, connection: Connection, request_id: int, request: Request | None) -> None:
        job = Job(connection=connection, request_id=request_id, request=request)
        if self._engine and request is not None and self._line.holder is not None:
            try:
                self._engine.check(request)
            except UserError as error:  # now: it need not wait for what cannot be
                self._fail(job, "request", one_line(error))
                return
        if self._line.num_of(job.connection) >= MAX_WAITING_PER_CLIENT:
            self._fail(job, "request", f"{MAX_WAITING_PER_CLIENT} requests of this client wait already")
        else:
            self._line.append(job)

    def _cancel(self, connection: Connection, request_id: int) -> None:
        holder = self._line.holder
        if holder is not None and holder.is_of(connection, request_id):
            holder.cancelled = True  # seen between two tokens
        elif (job := self._line.take_out(connection, request_id)) is not None:
            self._fail(job, "cancelled", "the request was cancelled")

    def _replay(self, connection: Connection, message: LeaseMessage) -> None:
        lease, holder = self._lease, self._line.holder
        if lease is None or holder is None or holder.connection is not connection:
            error = "this client does not hold the shared buffers"
            self._connections.send(connection, Failed(request_id=message.request_id, kind="request", error=error))
        elif (reply := lease.replay(message, self._log)) is not None:
            self._connections.send(connection, reply)
        self._answered_s = time.perf_counter()

    def _fail(self, job: Job, kind: FailureKind, error: str) -> None:
        self._counts["cancelled" if kind == "cancelled" else "failed"] += 1
        self._connections.send(job.connection, Failed(request_id=job.request_id, kind=kind, error=error))

    def _stats(self) -> dict[str, Any]:
        engine = self._engine.stats() if self._engine else {}
        startup_s = self._state.startup_s if isinstance(self._state, Ready) else None
        return engine | {"server": {**self._counts, "waiting": len(self._line), "startup_s": startup_s}}
