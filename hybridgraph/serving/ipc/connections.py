"""The generator's ends of all connections: one thread, never blocked by a client, never kept busy by one.

A client that says nothing, sends what is no message, or does not read what it asked for loses its
connection; the others do not notice. What arrives is taken in turns, one frame a client and one newcomer
a turn, for a bounded time a poll: a flood waits at its own sockets, not in the way of an answer.
"""

from __future__ import annotations

import math
import os
import selectors
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from hybridgraph.serving.ipc.address import Listener, peer_uid
from hybridgraph.serving.ipc.channel import RECEIVE_BYTES, FrameReader
from hybridgraph.serving.ipc.messages import (
    Failed,
    FailureKind,
    ProtocolError,
    ToClient,
    ToServer,
    WrongVersion,
    decode_hello,
    decode_to_server,
    encode,
)

HELLO_TIMEOUT_S = 5.0
MAX_CLIENTS = 64
NEWCOMER_S = 0.5  # in which a client keeps its place though it has not asked for anything yet
IDLE_S = 60.0  # for which a client that was answered keeps its place
RETRY_S = 0.1  # after a client could not be accepted, as where there are no more descriptors
POLL_BUDGET_S = 1e-3  # after which a poll leaves what else has arrived to the next one
MAX_UNREAD_BYTES = 1 << 20  # queued for a client beyond what the kernel holds for it


class Connection:
    """One client."""

    def __init__(self, endpoint: socket.socket, hello_timeout_s: float) -> None:
        now_s = time.monotonic()
        self.socket = endpoint
        self.reader = FrameReader()
        self.unsent = bytearray()
        self.hello_deadline_s: float | None = now_s + hello_timeout_s  # None once it has said Hello
        self.keeps_place_until_s = now_s + NEWCOMER_S  # where places are short
        self.open = True

    @property
    def greeted(self) -> bool:
        return self.hello_deadline_s is None


class Connections:
    """Accepts, reads, writes and drops clients; hands every message to ``on_message``.

    ``on_hello`` is called when a client has introduced itself, ``on_close`` when a greeted one is gone,
    and ``log`` with one line for everything a client did wrong.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        on_hello: Callable[[Connection], None],
        on_message: Callable[[Connection, ToServer], None],
        on_close: Callable[[Connection], None],
        log: Callable[[str], None],
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        allowed_uid: int | None = None,
    ) -> None:
        self._listener = listener.socket
        self._on_hello = on_hello
        self._on_message = on_message
        self._on_close = on_close
        self._log = log
        self._hello_timeout_s = hello_timeout_s
        self._allowed_uid = os.getuid() if allowed_uid is None else allowed_uid
        self._connections: set[Connection] = set()
        self._silent: set[Connection] = set()  # those that have not said Hello
        self._ready: OrderedDict[Connection | None, None] = OrderedDict()  # whose turn comes; None: who knocks
        self._accepts_again_s: float | None = None  # monotonic; None while newcomers are accepted
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def watch(self, endpoint: socket.socket, react: Callable[[], object]) -> None:
        """Call ``react`` from ``poll`` whenever ``endpoint`` is readable."""
        self._selector.register(endpoint, selectors.EVENT_READ, react)

    def poll(self, timeout_s: float | None) -> bool:
        """React to what has happened, for about POLL_BUDGET_S at most; returns whether anything had.

        Waits up to ``timeout_s`` for it (None: until something does happen, 0: not at all).
        """
        events = self._selector.select(self._until_next_deadline(timeout_s))
        for key, mask in events:
            if callable(key.data):
                key.data()
                continue
            if mask & selectors.EVENT_WRITE:
                self._flush(key.data)
            if mask & selectors.EVENT_READ:
                self._ready.setdefault(key.data)
        happened = bool(self._ready or events)
        self._take_turns()
        if self._silent:
            self._drop_silent()
        if self._accepts_again_s is not None and time.monotonic() >= self._accepts_again_s:
            self._resume_accepting()
        return happened

    def poll_all(self, within_s: float) -> None:
        """React to all that has happened, newcomers' first messages included, but for no longer than ``within_s``."""
        until_s = time.monotonic() + within_s
        while self.poll(0.0) and time.monotonic() < until_s:
            pass

    def send(self, connection: Connection, message: ToClient) -> None:
        """Send ``message``, now or as fast as the client reads; to a closed connection it is nothing."""
        if not connection.open:
            return
        frame = encode(message)
        if connection.unsent:
            connection.unsent += frame
            self._check_unread(connection)
            return
        self._sent(connection, frame, lambda: connection.socket.send(frame))

    def send_with_descriptors(self, connection: Connection, message: ToClient, descriptors: Sequence[int]) -> None:
        """Send ``message`` with file descriptors beside it."""
        if not connection.open:
            return
        if not connection.unsent:
            frame = encode(message)
            self._sent(connection, frame, lambda: socket.send_fds(connection.socket, [frame], descriptors))
            if len(connection.unsent) < len(frame):  # the descriptors went with the first byte
                return
        self.drop(connection, "protocol", "buffers were asked for before the replies so far were read")

    def broadcast(self, message: ToClient) -> None:
        """Send ``message`` to every client that has introduced itself."""
        for connection in self.greeted:
            self.send(connection, message)

    @property
    def greeted(self) -> list[Connection]:
        """The clients that have introduced themselves."""
        return [connection for connection in self._connections if connection.greeted]

    def drop(self, connection: Connection, kind: FailureKind, error: str) -> None:
        """Tell the client why, log it, and close its connection."""
        self._log(f"a client was dropped: {error}")
        if not connection.unsent:
            self.send(connection, Failed(request_id=None, kind=kind, error=error))
        self._close(connection)

    def close(self) -> None:
        """Close every connection; the listening socket belongs to the caller."""
        for connection in list(self._connections):
            self._close(connection)
        self._selector.close()

    def _take_turns(self) -> None:
        """Let one after the other be heard until nobody has more to say, or the time for it is over."""
        end_s = time.perf_counter() + POLL_BUDGET_S
        while self._ready:
            source, _ = self._ready.popitem(last=False)
            if self._accept() if source is None else self._take_frame(source):
                self._ready[source] = None
            if time.perf_counter() > end_s:
                return

    def _accept(self) -> bool:
        """Let one newcomer in; returns whether another may be waiting."""
        if len(self._connections) >= MAX_CLIENTS and 0.0 < (wait_s := self._make_room()) <= NEWCOMER_S:
            self._pause_accepting(wait_s)
            return False
        try:
            endpoint, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:  # there are no more descriptors, most often
            if self._make_room() == 0.0:
                return True
            self._log(f"a client could not be accepted: {error.strerror or error}")
            self._pause_accepting(RETRY_S)
            return False
        self._let_in(endpoint)
        return True

    def _make_room(self) -> float:
        """Drop the client that has been idle for longest, if it may be; returns seconds until one may, or 0."""
        idlest = min(self._connections, key=lambda connection: connection.keeps_place_until_s, default=None)
        if idlest is None:
            return math.inf
        if (left_s := idlest.keeps_place_until_s - time.monotonic()) > 0.0:
            return left_s
        self.drop(idlest, "request", "nothing was asked for, and another client needs the place")
        return 0.0

    def _pause_accepting(self, pause_s: float) -> None:
        """Leave newcomers where they wait; answering goes on."""
        self._accepts_again_s = time.monotonic() + pause_s
        self._selector.unregister(self._listener)

    def _resume_accepting(self) -> None:
        if self._accepts_again_s is not None:
            self._accepts_again_s = None
            self._selector.register(self._listener, selectors.EVENT_READ, None)

    def _let_in(self, endpoint: socket.socket) -> None:
        endpoint.setblocking(False)
        connection = Connection(endpoint, self._hello_timeout_s)
        self._connections.add(connection)
        self._silent.add(connection)
        self._selector.register(endpoint, selectors.EVENT_READ, connection)
        if (uid := peer_uid(endpoint)) != self._allowed_uid:
            self.drop(connection, "protocol", f"user id {uid} may not use this generator")
        elif len(self._connections) > MAX_CLIENTS:
            self.drop(connection, "request", f"{MAX_CLIENTS} clients are connected already")

    def _take_frame(self, connection: Connection) -> bool:
        """Hear one message of a client; returns whether another has arrived."""
        try:
            if not connection.open or not (connection.reader.holds_frame or self._read(connection)):
                return False
            if (body := connection.reader.next()) is not None:
                self._deliver(connection, body)
            return connection.open and connection.reader.holds_frame
        except ProtocolError as error:
            self.drop(connection, "version" if isinstance(error, WrongVersion) else "protocol", str(error))
            return False

    def _read(self, connection: Connection) -> bool:
        """Read what has arrived; returns False where nothing has, or the end of the connection."""
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            self._close(connection)
            return False
        if not data:
            connection.reader.finish()
            self._close(connection)
            return False
        connection.reader.feed(data)
        return True

    def _deliver(self, connection: Connection, body: bytes) -> None:
        if connection.greeted:
            self._on_message(connection, decode_to_server(body))
            return
        decode_hello(body)
        connection.hello_deadline_s = None
        self._silent.discard(connection)
        self._on_hello(connection)

    def _sent(self, connection: Connection, frame: bytearray, send: Callable[[], int]) -> None:
        try:
            count = send()
        except BlockingIOError:
            count = 0
        except OSError:
            self._close(connection)
            return
        if count < len(frame):
            connection.unsent += frame[count:]
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
            self._check_unread(connection)

    def _flush(self, connection: Connection) -> None:
        if not connection.open:
            return
        try:
            del connection.unsent[: connection.socket.send(connection.unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        if not connection.unsent:
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    def _check_unread(self, connection: Connection) -> None:
        if len(connection.unsent) > MAX_UNREAD_BYTES:
            self.drop(connection, "protocol", f"it left {len(connection.unsent)} bytes of its replies unread")

    def _close(self, connection: Connection) -> None:
        if not connection.open:
            return
        connection.open = False
        self._connections.discard(connection)
        self._silent.discard(connection)
        self._ready.pop(connection, None)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._resume_accepting()
        if connection.greeted:
            self._on_close(connection)

    def _until_next_deadline(self, timeout_s: float | None) -> float | None:
        if self._ready:
            return 0.0
        if not self._silent and self._accepts_again_s is None:
            return timeout_s
        deadlines_s = [c.hello_deadline_s for c in self._silent if c.hello_deadline_s is not None]
        nearest_s = min([*deadlines_s, self._accepts_again_s or math.inf]) - time.monotonic()
        return max(0.0, nearest_s if timeout_s is None else min(timeout_s, nearest_s))

    def _drop_silent(self) -> None:
        now_s = time.monotonic()
        for connection in self._silent - self._ready.keys():  # else it may have said something that is not read yet
            if connection.hello_deadline_s is not None and connection.hello_deadline_s <= now_s:
                self.drop(connection, "protocol", f"no Hello within {self._hello_timeout_s:g} s")
