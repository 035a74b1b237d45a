"""Locks between processes: files held with flock, and leases for where that does not reach.

What the holder of a lock starts holds it as well. A lease also holds between hosts that share a file system whose
locks they do not share: its file says who has it, and is touched every RENEWED_EVERY_S.
"""

from __future__ import annotations

import fcntl
import os
import platform
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from hybridgraph.errors import UserError
from hybridgraph.places import require_own

INHERITED = "HYBRIDGRAPH_LOCKS"  # the descriptors of what a process's parent holds, such as 5,7

RENEWED_EVERY_S = 1.0
_WATCHED_S = 5.0  # how long a lease that nobody renews counts

_own: list[int] = []


class Busy(UserError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, *, busy: str, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` until the block ends, alone or ``shared`` with others who share it.

    A lock that the parent of this process holds is held already. Raises Busy, with the text ``busy``, where another
    process holds it, and UserError where none can.
    """
    descriptor = _opened(path)
    if any(os.path.samestat(os.fstat(descriptor), os.fstat(held)) for held in inherited()):
        os.close(descriptor)
        yield
        return
    try:
        if not _taken(descriptor, busy, shared):
            raise UserError(f"{path.parent} is on a file system without locks: give a directory on another one")
        _own.append(descriptor)
        try:
            yield
        finally:
            _own.remove(descriptor)
    finally:
        os.close(descriptor)


def held() -> tuple[int, ...]:
    """The descriptors of every lock that this process holds, for what it starts."""
    return (*inherited(), *_own)


@cache
def inherited() -> tuple[int, ...]:
    """The descriptors of the locks that this process's parent holds."""
    found = []
    for text in os.environ.get(INHERITED, "").split(","):
        with suppress(ValueError, OSError):
            if stat.S_ISREG(os.fstat(int(text)).st_mode):
                os.set_inheritable(int(text), False)
                found.append(int(text))
    return tuple(found)


def _opened(path: Path) -> int:
    require_own(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_NONBLOCK: what lies there may be a FIFO.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path.parent}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is no file: move it away")
    return descriptor


def _taken(descriptor: int, busy: str, shared: bool) -> bool:
    """Take the lock; False where this file system has none. Raises Busy where another process holds it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(busy) from None
    except OSError:
        return False
    return True


@contextmanager
def leased(path: Path, *, busy: str) -> Iterator[None]:
    """Hold ``path`` until the block ends, also against other hosts, and where there are no locks.

    Raises Busy, with the text ``busy`` in which ``{}`` is who holds it, where another process does. What another host,
    or a process beyond the reach of locks, has not renewed for seconds was left behind by one that is gone.
    """
    descriptor = _opened(path)
    try:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        has_locks = _taken(descriptor, busy.format(holder or "another process"), shared=False)
        if holder and not (has_locks and _boot() in holder) and _is_renewed(path):
            raise Busy(busy.format(holder))
        own = f"process {os.getpid()} on {platform.node()} (boot {_boot()})"
        _write(descriptor, own)
        if not has_locks:  # of two that came here at once, the second to write has it
            time.sleep(RENEWED_EVERY_S)
            if (holder := os.pread(descriptor, 200, 0).decode(errors="replace")) != own:
                raise Busy(busy.format(holder))
        with _renewing(descriptor):
            yield
        _write(descriptor, "")
    finally:
        os.close(descriptor)


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _boot() -> str:
    """What tells one running kernel from every other: only its processes see each other's locks for certain."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return platform.node()


def _is_renewed(path: Path) -> bool:
    """Watch whether somebody touches the file; no two hosts' clocks are compared."""
    before = _touched_ns(path)
    until = time.monotonic() + _WATCHED_S
    while time.monotonic() < until:
        time.sleep(RENEWED_EVERY_S / 4)
        if _touched_ns(path) != before:
            return True
    return False


def _touched_ns(path: Path) -> int:
    with path.open("rb") as file:  # opened anew: a network file system remembers what it has told of an open one
        return os.fstat(file.fileno()).st_mtime_ns


@contextmanager
def _renewing(descriptor: int) -> Iterator[None]:
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEWED_EVERY_S):
            os.utime(descriptor)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
