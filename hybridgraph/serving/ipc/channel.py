"""Frames over a Unix socket: cut from a stream, and the client's blocking end of a connection."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

from hybridgraph.errors import UserError
from hybridgraph.serving.ipc.address import peer_uid
from hybridgraph.serving.ipc.messages import (
    LENGTH_PREFIX,
    MAX_FRAME_BYTES,
    FrameTooLarge,
    ToClient,
    ToServer,
    Truncated,
    decode_to_client,
    encode,
)

RECEIVE_BYTES = 1 << 16
MAX_DESCRIPTORS = 16  # that may travel beside one frame

# Waking a sleeping thread costs up to 0.1 ms on a virtual machine, twice a request, and what it then runs has left
# the caches: 0.3 ms in all. Where each side can have a core of its own, both look at their sockets without sleeping
# for as long as the next message may be expected: a reply, or another request.
MIN_CORES_TO_SPIN = 8
_MAY_SPIN = len(os.sched_getaffinity(0)) >= MIN_CORES_TO_SPIN
SPIN_S = 0.05 if _MAY_SPIN else 0.0
IDLE_SPIN_S = 1.0 if _MAY_SPIN else 0.0  # of a generator with nothing else to do


class FrameReader:
    """Cuts a stream of bytes into the bodies of frames, however the stream was split on its way."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        self._pending += data

    @property
    def holds_frame(self) -> bool:
        """Whether ``next`` has something to return, or to raise."""
        pending = self._pending
        if len(pending) < LENGTH_PREFIX.size:
            return False
        (length,) = LENGTH_PREFIX.unpack_from(pending)
        return length > MAX_FRAME_BYTES or len(pending) >= LENGTH_PREFIX.size + length

    def next(self) -> bytes | None:
        """The body of the next whole frame, or None; raises FrameTooLarge as soon as its length is known."""
        pending = self._pending
        if len(pending) < LENGTH_PREFIX.size:
            return None
        (length,) = LENGTH_PREFIX.unpack_from(pending)
        if length > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a frame of {length} bytes: at most {MAX_FRAME_BYTES}")
        end = LENGTH_PREFIX.size + length
        if len(pending) < end:
            return None
        body = bytes(pending[LENGTH_PREFIX.size : end])
        del pending[:end]
        return body

    def finish(self) -> None:
        """The stream has ended; raises Truncated where that was inside a frame."""
        if self._pending:
            raise Truncated(f"the connection ended inside a frame, after {len(self._pending)} bytes of it")


class GeneratorGone(Exception):
    """The generator's end of the connection is closed."""


class ClientChannel:
    """A client's connection: blocking, one system call to send a message, one to receive what has arrived."""

    def __init__(self, connection: socket.socket, *, timeout_s: float) -> None:
        """Own ``connection`` from here on; ``timeout_s``: how long the generator may say or accept nothing."""
        self._socket = connection
        self._reader = FrameReader()
        self.set_timeout(timeout_s)

    def set_timeout(self, timeout_s: float) -> None:
        """Change how long the generator may say or accept nothing."""
        self.timeout_s = timeout_s
        _set_timeouts(self._socket, timeout_s)

    @classmethod
    def connect(cls, path: Path, *, timeout_s: float) -> ClientChannel:
        """Connect to the generator at ``path``.

        Raises OSError, of which BlockingIOError where it accepts nobody, or UserError where it is another user's.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _set_timeouts(connection, timeout_s)
            connection.connect(str(path))
            if (uid := peer_uid(connection)) != os.getuid():
                raise UserError(f"the generator at {path} belongs to user id {uid}, this client to {os.getuid()}")
        except BaseException:
            connection.close()
            raise
        return cls(connection, timeout_s=timeout_s)

    def send(self, message: ToServer) -> None:
        """Send ``message`` whole; raises FrameTooLarge, GeneratorGone, or TimeoutError."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes | bytearray) -> None:
        """Send an encoded message whole; raises GeneratorGone, or TimeoutError."""
        try:
            self._socket.sendall(frame)
        except (BrokenPipeError, ConnectionResetError):
            raise GeneratorGone from None
        except BlockingIOError:
            raise TimeoutError from None

    def receive(self, *, descriptors: list[int] | None = None) -> ToClient:
        """Return the next message; raises GeneratorGone, TimeoutError or ProtocolError.

        ``descriptors``: gathers the file descriptors that come with it, for the caller to close.
        """
        until_s = time.monotonic() + self.timeout_s
        while (body := self._reader.next()) is None:
            if time.monotonic() > until_s:  # bytes that trickle are no sign of life
                raise TimeoutError
            data = self._receive_bytes(descriptors)
            if not data:
                raise GeneratorGone
            self._reader.feed(data)
        return decode_to_client(body)

    def _receive_bytes(self, descriptors: list[int] | None) -> bytes:
        """What has arrived, once something has; nothing at the end of the connection."""
        try:
            if descriptors is None:
                return self._receive_spinning() or self._socket.recv(RECEIVE_BYTES)
            data, received, _, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, MAX_DESCRIPTORS)
        except BlockingIOError:
            raise TimeoutError from None
        except ConnectionResetError:
            raise GeneratorGone from None
        descriptors += received
        return data

    def _receive_spinning(self) -> bytes:
        """What arrives within ``SPIN_S``, without sleeping; nothing where nothing does, or where the end came."""
        end_s = time.perf_counter() + SPIN_S
        while time.perf_counter() < end_s:
            try:
                return self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
        return b""

    def close(self) -> None:
        self._socket.close()


def _set_timeouts(connection: socket.socket, timeout_s: float) -> None:
    """Limit every call on ``connection``. By the kernel: Python's timeout would cost a second system call a receive."""
    seconds, fraction = divmod(timeout_s, 1)
    timeout = struct.pack("ll", int(seconds), int(fraction * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
