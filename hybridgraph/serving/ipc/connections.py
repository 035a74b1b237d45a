"""The generator's ends of all connections: one thread, never blocked by a client.

A client that says nothing, sends what is no message, or does not read what it asked for loses its
connection; the others do not notice.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
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
RETRY_S = 0.1  # after a client could not be accepted, as where there are no more descriptors
MAX_UNREAD_BYTES = 1 << 20  # queued for a client beyond what the kernel holds for it


class Connection:
    """One client."""

    def __init__(self, endpoint: socket.socket, hello_deadline: float) -> None:
        self.socket = endpoint
        self.reader = FrameReader()
        self.unsent = bytearray()
        self.hello_deadline: float | None = hello_deadline  # None once it has said Hello
        self.open = True

    @property
    def greeted(self) -> bool:
        return self.hello_deadline is None


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
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def watch(self, endpoint: socket.socket, react: Callable[[], object]) -> None:
        """Call ``react`` from ``poll`` whenever ``endpoint`` is readable."""
        self._selector.register(endpoint, selectors.EVENT_READ, react)

    def poll(self, timeout_s: float | None) -> None:
        """React to what has happened; waits up to ``timeout_s`` (None: until something does, 0: not at all)."""
        if self._silent:
            timeout_s = self._until_next_deadline(timeout_s)
        for key, events in self._selector.select(timeout_s):
            if not isinstance(key.data, Connection):
                key.data()
                continue
            if events & selectors.EVENT_WRITE and key.data.open:
                self._flush(key.data)
            if events & selectors.EVENT_READ and key.data.open:
                self._read(key.data)
        if self._silent:
            self._drop_silent()

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
        for connection in [c for c in self._connections if c.greeted]:
            self.send(connection, message)

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

    def _accept(self) -> None:
        while True:
            try:
                endpoint, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._log(f"a client could not be accepted: {error}")
                time.sleep(RETRY_S)  # it still waits at the door, and the next poll comes here at once
                return
            self._let_in(endpoint)

    def _let_in(self, endpoint: socket.socket) -> None:
        endpoint.setblocking(False)
        connection = Connection(endpoint, time.monotonic() + self._hello_timeout_s)
        self._connections.add(connection)
        self._silent.add(connection)
        self._selector.register(endpoint, selectors.EVENT_READ, connection)
        if (uid := peer_uid(endpoint)) != self._allowed_uid:
            self.drop(connection, "protocol", f"user id {uid} may not use this generator")
        elif len(self._connections) > MAX_CLIENTS:
            self.drop(connection, "request", f"{MAX_CLIENTS} clients are connected already")

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        try:
            if data:
                connection.reader.feed(data)
                self._deliver(connection)
            else:
                connection.reader.finish()
                self._close(connection)
        except ProtocolError as error:
            self.drop(connection, "version" if isinstance(error, WrongVersion) else "protocol", str(error))

    def _deliver(self, connection: Connection) -> None:
        while connection.open and (body := connection.reader.next()) is not None:
            if connection.greeted:
                self._on_message(connection, decode_to_server(body))
                continue
            decode_hello(body)
            connection.hello_deadline = None
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
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.greeted:
            self._on_close(connection)

    def _until_next_deadline(self, timeout_s: float | None) -> float:
        nearest = min(c.hello_deadline for c in self._silent if c.hello_deadline is not None) - time.monotonic()
        return max(0.0, nearest if timeout_s is None else min(timeout_s, nearest))

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for connection in list(self._silent):
            if connection.hello_deadline is not None and connection.hello_deadline <= now:
                self.drop(connection, "protocol", f"no Hello within {self._hello_timeout_s:g} s")
