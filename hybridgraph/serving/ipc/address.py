"""The address of a generator: a Unix socket in a private directory, and who may hold it.

A lock file beside the socket is held for a generator's life, so that of two that start at once
exactly one serves, and so that a socket which a killed generator left behind is told from a live one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hybridgraph.errors import UserError

MAX_PATH_BYTES = 107  # sockaddr_un.sun_path holds 108 with its terminator
_BACKLOG = 128


def fresh_socket_path() -> Path:
    """A path for a socket in a directory that does not exist yet."""
    return Path(tempfile.gettempdir(), f"hybridgraph-{secrets.token_hex(4)}", "socket")


def remove_left_behind(path: Path) -> None:
    """Remove what a killed generator left of a fresh path."""
    with suppress(OSError):
        for left in (path, _lock_of(path)):
            left.unlink(missing_ok=True)
        path.parent.rmdir()


def require_short(path: Path) -> None:
    """Raise UserError for a path that no socket can have."""
    if (length := len(os.fsencode(path))) > MAX_PATH_BYTES:
        raise UserError(
            f"socket {path}: {length} bytes long, a socket's path has at most {MAX_PATH_BYTES} (--socket names "
            "another, TMPDIR where fresh ones are made)"
        )


def peer_uid(connection: socket.socket) -> int:
    """The user id of the process that opened the other end, as the kernel knows it."""
    layout = struct.Struct("3i")  # struct ucred: pid, uid, gid
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    uid: int = layout.unpack(credentials)[1]
    return uid


@dataclass(frozen=True)
class Listener:
    """A bound, listening, non-blocking socket at ``path``."""

    socket: socket.socket
    path: Path


@contextmanager
def listen(path: Path | None = None) -> Iterator[Listener]:
    """Hold ``path``, or a fresh one, until the block ends; then the socket is gone, and its directory if made here.

    Raises UserError where the path is too long, not private, held by a live generator, or taken by
    something that is no socket.
    """
    path = (path or fresh_socket_path()).absolute()
    require_short(path)
    with _private(path.parent), _locked(path), _bound(path) as listening:
        yield Listener(listening, path)


@contextmanager
def _private(directory: Path) -> Iterator[None]:
    """Make ``directory`` where it does not exist; raises UserError where others than its user can enter it."""
    try:
        made = not directory.exists()
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise UserError(f"--socket: no directory {directory} can be made or read: {error.strerror}") from None
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.getuid() or mode & 0o077:
        raise UserError(
            f"--socket: {directory} is not private (mode {mode:04o}): give a new directory, or one of mode 0700"
        )
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # not empty, or whoever cleans temporary directories was quicker
                directory.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock_path = _lock_of(path)
    try:
        descriptor = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise UserError(f"--socket: {lock_path} cannot be locked: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"--socket: {lock_path} cannot be locked: it is no regular file, move it away")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that has just ended may have removed the file between our open and our lock.
            held = os.path.samestat(os.fstat(descriptor), lock_path.lstat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        except OSError as error:
            _remove(lock_path)
            raise UserError(f"--socket: {lock_path} cannot be locked: {error.strerror}") from None
        if not held:
            raise UserError(f"a generator is already serving {path}")
        try:
            yield
        finally:
            _remove(lock_path)
    finally:
        os.close(descriptor)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            listening.bind(str(path))
        except OSError as error:
            raise UserError(f"--socket: {path} cannot be made: {error.strerror}") from None
        bound = path.lstat()
        try:
            path.chmod(0o600)
            listening.listen(_BACKLOG)
            listening.setblocking(False)
            yield listening
        finally:
            _remove(path, bound)


def _remove(path: Path, made: os.stat_result | None = None) -> None:
    """Remove our file at a generator's end, if it is still the one we ``made``; not if its directory was taken away."""
    with suppress(OSError):
        if made is None or os.path.samestat(path.lstat(), made):
            path.unlink()


def _remove_stale(path: Path) -> None:
    """Make way for a new socket; removes nothing but a socket that nobody listens on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UserError(f"--socket {path} exists and is no socket: give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog answers at once, too: that is a live server
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise UserError(f"--socket {path}: {error.strerror}") from None
    raise UserError(f"a generator is already serving {path}")
