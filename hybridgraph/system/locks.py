"""Locks between processes: files held with flock. What the holder starts holds them as well."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from hybridgraph.errors import UserError

INHERITED = "HYBRIDGRAPH_LOCKS"  # the descriptors of what a process's parent holds, such as 5,7

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
        _take(descriptor, path, busy, shared)
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


def _take(descriptor: int, path: Path, busy: str, shared: bool) -> None:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(busy) from None
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be locked ({error.strerror}): --output-dir names a directory on a file system "
            "that has locks"
        ) from None
