"""The generator as a server: one engine, one thread, any number of clients, one request at a time.

The engine runs in the thread that serves the sockets, so that nothing lies between a request's
arrival and the first kernel it launches. Between two tokens, and whenever the starting engine
reports progress, the loop looks at the sockets without waiting. Within a call that takes seconds,
the heartbeat does.

The life of a request: Generate arrives → it waits for its client's turn (Queued) → the engine checks
it → each id is sent when it exists (Token) → Done with the engine's report, or Failed with the reason.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hybridgraph.contract import Report, Request
from hybridgraph.errors import UserError, one_line
from hybridgraph.serving.heartbeat import Heartbeat
from hybridgraph.serving.ipc.address import Listener, listen
from hybridgraph.serving.ipc.channel import IDLE_SPIN_S, SPIN_S
from hybridgraph.serving.ipc.connections import HELLO_TIMEOUT_S, IDLE_S, Connection, Connections
from hybridgraph.serving.ipc.messages import (
    HEARTBEAT,
    Cancel,
    DecodeStep,
    Done,
    Failed,
    FailureKind,
    Finished,
    Generate,
    GetStats,
    Prefill,
    Progress,
    Queued,
    Ready,
    Replayed,
    Share,
    Shared,
    Stats,
    Token,
    ToServer,
)
from hybridgraph.serving.log import BoundedLog
from hybridgraph.serving.queue import FairQueue, Job
from hybridgraph.system.console import OnProgress, no_op, say
from hybridgraph.system.signals import Stopped, StopSignals
from hybridgraph.system.unblocked import unblocked

if TYPE_CHECKING:
    from hybridgraph.engine.engine import HybridEngine  # whose torch is imported by who opens it
    from hybridgraph.serving.lease import Lease, Lender

MAX_WAITING_PER_CLIENT = 64
MAX_WAITING_IDS = 1 << 18  # of a client's prompts, which wait in memory
LAST_WORDS_S = 0.25  # for those at the door when the generator ends
LOOK_IN_S = 0.05  # for the sockets, while the engine is in a long call


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long what is waited for, in seconds."""

    hello_s: float = HELLO_TIMEOUT_S  # a client's introduction
    finish_s: float = 1.0  # an answer in flight, but not on lent buffers, when the generator is told to stop
    beat_s: float = 5.0  # between two signs of life for who waits: much less than a client's timeout
    start_s: float = 3600.0  # one call of the starting engine, which may have a model to download
    call_s: float = 600.0  # one call of the engine that answers; after either no further sign of life is given
    lease_s: float = 1.0  # others, for a client that holds the engine and has nothing for it to do


def log_to_stderr(text: str) -> None:
    say(f"generator: {text}")


def serve(
    path: Path | None,
    open_engine: Callable[[OnProgress], HybridEngine],
    *,
    on_listening: Callable[[Path], None] = no_op,
    on_ready: Callable[[], None] = no_op,
    log: Callable[[str], None] = log_to_stderr,
    timeouts: Timeouts = Timeouts(),
) -> int:
    """Open an engine and serve it at ``path``, or a fresh one, until SIGTERM, SIGINT or SIGHUP.

    Return the process's exit code (0, 130 or 129). ``open_engine`` is given a callback for its progress; clients
    may connect, and see it, from the first call on. What it raises reaches them as Failed and is raised again here.
    Must be called from the main thread, which receives signals.
    """
    # Signals first, and last: one that ended this process in between would leave the socket.
    with (
        StopSignals() as stop,
        unblocked("stderr"),
        closing(BoundedLog(log)) as bounded_log,
        listen(path) as listener,
        closing(Server(listener, stop, bounded_log, timeouts)) as server,
    ):
        try:
            with server.away(), stop.at_once():
                on_listening(listener.path)
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

    def __init__(self, listener: Listener, stop: StopSignals, log: Callable[[str], None], timeouts: Timeouts) -> None:
        self._stop = stop
        self._log = log
        self._timeouts = timeouts
        self._started_s = time.perf_counter()
        self._connections = Connections(
            listener,
            on_hello=self._greet,
            on_message=self._receive,
            on_close=self._forget,
            log=log,
            hello_timeout_s=timeouts.hello_s,
        )
        self._connections.watch(stop.wake, lambda: stop.wake.recv(64))
        self._engine: HybridEngine | None = None
        self._queue = FairQueue(self._tell_position)
        self._lender: Lender | None = None
        self._leases: dict[Connection, Lease] = {}
        self._asked_for_stats: list[Connection] = []  # while the engine was in a call
        self._is_looking_in = False
        self._answered_s = -math.inf  # when a client was last given what it asked for
        self._state: Progress | Ready | Failed = Progress(stage="starting", done=0, total=0)
        self._counts = Counter(clients=0, done=0, failed=0, cancelled=0)
        self._beat_s = time.monotonic()  # when those in the queue last heard that this process lives
        self._heartbeat = Heartbeat(self._look_in, every_s=timeouts.beat_s, hung_s=timeouts.start_s)
        self.away = self._heartbeat.away

    def show_progress(self, stage: str, done: int, total: int) -> None:
        """Tell every client how far the engine's start is, and let new ones in; for the engine to call."""
        with self._heartbeat.here:
            self._heartbeat.seen()
            self._state = Progress(stage=stage, done=done, total=total)
            self._connections.broadcast(self._state)
            self._connections.poll(0.0)
        if self._stop.received is not None:
            raise Stopped

    def run(self, engine: HybridEngine, on_ready: Callable[[], None]) -> None:
        """Answer requests, one client after the other, until a signal to stop."""
        self._engine = engine
        self._heartbeat.hung_s = self._timeouts.call_s
        # What lives now lives until the end: a collection must not walk it while a request waits.
        gc.collect()
        gc.freeze()
        self._state = Ready(info=engine.info, startup_s=time.perf_counter() - self._started_s)
        self._connections.broadcast(self._state)
        with unblocked("stdout"):
            on_ready()
        while self._stop.received is None:
            if (job := self._queue.next()) is not None:
                self._serve(engine, job)
                self._answered_s = time.perf_counter()
            else:
                self._wait(engine)
        self.end_all("stopped", "the generator was stopped")

    def end_all(self, kind: FailureKind, error: str) -> None:
        """Tell every waiting request, then every client, why there will be no answer."""
        for job in self._queue.clear():
            self._fail(job, kind, error)
        self._state = Failed(request_id=None, kind=kind, error=error)
        self._connections.broadcast(self._state)
        self._connections.poll_all(LAST_WORDS_S)  # newcomers are told when their Hello is read

    def close(self) -> None:
        """Close every connection, and take every lease back."""
        self._heartbeat.close()
        self._connections.close()
        self._lender = None
        gc.freeze()  # as above: at the process's end the collector would walk it all once more, for half a second

    def _wait(self, engine: HybridEngine) -> None:
        """For something to happen: at first without sleeping, but not for long while a capture needs the GIL."""
        spin_s = SPIN_S if engine.is_capturing else IDLE_SPIN_S
        self._poll(0.0 if time.perf_counter() < self._answered_s + spin_s else None)

    def _poll(self, timeout_s: float | None) -> None:
        """See to the sockets; tell those in the queue from time to time that they wait for something that lives."""
        none_waited = self._queue.is_empty
        if timeout_s is None and not none_waited:
            timeout_s = min(self._timeouts.beat_s, self._timeouts.lease_s)
        self._connections.poll(timeout_s)
        now_s = self._heartbeat.seen()
        while self._asked_for_stats:
            self._send_stats(self._asked_for_stats.pop())
        if none_waited:
            self._beat_s = now_s
        elif now_s > self._beat_s + self._timeouts.beat_s:
            self._beat(self._queue.clients)

    def _look_in(self) -> None:
        """See to the sockets while the server's own thread is in a long call, and tell all who wait that it lives."""
        self._is_looking_in = True
        self._connections.poll_all(LOOK_IN_S)
        self._is_looking_in = False
        if self._engine is None:
            self._beat(self._connections.greeted)
        else:
            holder = self._queue.holder
            self._beat([*self._queue.clients, *([holder.connection] if holder else [])])

    def _beat(self, clients: Iterable[Connection]) -> None:
        self._beat_s = time.monotonic()
        for connection in clients:
            if not connection.unsent:  # else it does not even read what it has
                self._connections.send(connection, HEARTBEAT)

    def _serve(self, engine: HybridEngine, job: Job) -> None:
        try:
            if isinstance(job.message, Generate):
                self._answer(engine, job, job.message.request)
            elif isinstance(job.message, Share):
                self._lend(engine, job)
            else:
                self._replay(engine, job, job.message)
        except _Interrupted as interruption:
            self._fail(job, interruption.kind, str(interruption))
        except UserError as error:
            self._fail(job, "request", one_line(error))
        except Exception as error:
            self._log(f"a request failed in the engine: {one_line(error)}")
            self._fail(job, "engine", one_line(error))
            self._require_usable(engine)
        finally:
            self._queue.holder = None
            self._settle(job)

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
            with self._heartbeat.here:
                self._connections.send(job.connection, Token(request_id=job.request_id, id=token_id))
                self._poll(0.0)
                self._require_going_on(job, grace_s=self._timeouts.finish_s)

        with self.away():
            report = engine.stream(request, emit)
        self._counts["done"] += 1
        self._connections.send(job.connection, Done(request_id=job.request_id, report=report))

    def _require_going_on(self, job: Job, *, grace_s: float = 0.0) -> None:
        """Raise _Interrupted where nobody wants the rest of an answer, or ``grace_s`` after the signal to stop."""
        if job.cancelled or not job.connection.open:
            raise _Interrupted("cancelled", "the request was cancelled")
        if self._stop.received is not None and time.monotonic() > self._stop.received_s + grace_s:
            raise _Interrupted("stopped", "the generator was stopped before the answer was complete")

    def _lend(self, engine: HybridEngine, job: Job) -> None:
        """Give a client buffers of its own to run dynamic operations on."""
        from hybridgraph.serving.lease import Lender  # needs torch, which serving by itself does not

        if self._lender is None:
            self._lender = Lender(engine)
        lease = self._lender.lend(job.request_id)
        reply = Shared(request_id=job.request_id, buffers=lease.handles)
        self._connections.send_with_descriptors(job.connection, reply, lease.descriptors)
        if job.connection.open:
            self._leases[job.connection] = lease

    def _replay(self, engine: HybridEngine, job: Job, message: Prefill) -> None:
        """Replay on lent buffers until their client has finished its answer, or kept others waiting for too long."""
        if (lease := self._leases.get(job.connection)) is None:
            raise UserError("this client has given the shared buffers back")
        job.begun_s = time.monotonic()
        with engine.hold():
            try:
                self._replayed(job, message, lambda: lease.prefill(message.length))
                while isinstance(step := self._next_step(engine, job), DecodeStep):
                    self._replayed(job, step, lease.decode)
            finally:
                engine.forget_overflow()
        self._counts["done"] += 1

    def _replayed(self, job: Job, step: Prefill | DecodeStep, replay: Callable[[], Report | None]) -> None:
        begun_s = time.monotonic()
        with self.away():
            report = replay()
        job.worked_s += time.monotonic() - begun_s
        self._answered_s = time.perf_counter()
        self._connections.send(job.connection, Replayed(request_id=step.request_id, report=report))

    def _next_step(self, engine: HybridEngine, job: Job) -> DecodeStep | Finished:
        """What the client wants next, when it does; raises _Interrupted where others wait and it never does.

        It may take as long as the engine has worked for it, and ``lease_s`` more.
        """
        while not job.steps:
            self._wait(engine)
            self._require_going_on(job)
            held_s = time.monotonic() - job.begun_s
            if not self._queue.is_empty and held_s > 2 * job.worked_s + self._timeouts.lease_s:
                raise _Interrupted("request", "others wait for the engine, which was held without being used")
        return job.steps.popleft()

    def _greet(self, connection: Connection) -> None:
        self._counts["clients"] += 1
        self._connections.send(connection, self._state)

    def _receive(self, connection: Connection, message: ToServer) -> None:
        if isinstance(message, (Generate, Share)):
            self._enqueue(Job(connection=connection, message=message))
        elif isinstance(message, (Prefill, DecodeStep, Finished)):
            self._receive_for_lease(connection, message)
        elif isinstance(message, Cancel):
            self._cancel(connection, message.request_id)
        elif isinstance(message, GetStats):
            self._send_stats(connection)
        else:
            self._connections.drop(connection, "protocol", "a second Hello")

    def _enqueue(self, job: Job) -> bool:
        """Let ``job`` wait for its turn; returns False where it is refused."""
        ahead = self._queue.jobs_of(job.connection)
        try:
            if len(ahead) >= MAX_WAITING_PER_CLIENT:
                raise UserError(f"{MAX_WAITING_PER_CLIENT} requests of this client wait already")
            if ahead and job.num_ids + sum(other.num_ids for other in ahead) > MAX_WAITING_IDS:
                raise UserError(f"with it more than {MAX_WAITING_IDS} prompt ids of this client would wait")
            if isinstance(job.message, Generate) and self._engine and not self._queue.is_free:
                self._engine.check(job.message.request)  # now: it need not wait for what cannot be
        except UserError as error:
            self._fail(job, "request", one_line(error))
            return False
        job.connection.keeps_place_until_s = math.inf
        self._queue.append(job)
        return True

    def _receive_for_lease(self, connection: Connection, message: Prefill | DecodeStep | Finished) -> None:
        lease = self._leases.get(connection)
        answer = lease.answer if lease else None
        if lease is None:
            self._refuse(connection, message.request_id, "this client does not hold the shared buffers")
        elif isinstance(message, Prefill):
            if self._enqueue(job := Job(connection=connection, message=message)):
                lease.answer = job
                if answer is not None:
                    answer.steps.append(Finished(request_id=answer.request_id))
        elif isinstance(message, Finished):
            lease.answer = None
            if answer is not None:
                answer.steps.append(message)
        elif answer is None or len(answer.steps) >= MAX_WAITING_PER_CLIENT:
            self._refuse(connection, message.request_id, "no prefill is in progress, or too many steps wait already")
        else:
            answer.steps.append(message)

    def _cancel(self, connection: Connection, request_id: int) -> None:
        holder, lease = self._queue.holder, self._leases.get(connection)
        if holder is not None and holder.is_of(connection, request_id):
            holder.cancelled = True  # seen between two tokens
        elif (job := self._queue.remove(connection, request_id)) is not None:
            self._fail(job, "cancelled", "the request was cancelled")
            self._settle(job)
        elif lease is not None and lease.request_id == request_id:
            del self._leases[connection]

    def _settle(self, job: Job) -> None:
        """See to what a job leaves that does not wait any more."""
        lease = self._leases.get(job.connection)
        if lease is not None and lease.answer is job:
            lease.answer = None
        if not self._queue.jobs_of(job.connection):
            job.connection.keeps_place_until_s = time.monotonic() + IDLE_S

    def _forget(self, connection: Connection) -> None:
        """Nothing of a client that is gone waits any longer."""
        self._queue.forget(connection)
        self._leases.pop(connection, None)

    def _tell_position(self, job: Job, position: int) -> None:
        self._connections.send(job.connection, Queued(request_id=job.request_id, position=position))

    def _fail(self, job: Job, kind: FailureKind, error: str) -> None:
        self._counts["cancelled" if kind == "cancelled" else "failed"] += 1
        self._connections.send(job.connection, Failed(request_id=job.request_id, kind=kind, error=error))

    def _refuse(self, connection: Connection, request_id: int, error: str) -> None:
        self._connections.send(connection, Failed(request_id=request_id, kind="request", error=error))

    def _send_stats(self, connection: Connection) -> None:
        """Send what the engine tells; once it does, where it is in a call: it is not for two threads."""
        if self._is_looking_in and self._engine:
            self._asked_for_stats.append(connection)
            return
        engine = self._engine.stats() if self._engine else {}
        startup_s = self._state.startup_s if isinstance(self._state, Ready) else None
        server = {**self._counts, "waiting": len(self._queue), "startup_s": startup_s}
        self._connections.send(connection, Stats(values=engine | {"server": server}))
