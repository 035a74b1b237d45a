"""Files under names of ours: bounded, regular, never by way of a link, and written whole or not at all.

A directory of results may come from anywhere. A link in it must not lead a write elsewhere, and neither a pipe nor a
device may hang or fill whoever reads it.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridgraph.errors import UserError
from hybridgraph.places import require_own

MAX_BYTES = 1 << 30  # of a file, decompressed: far beyond any that a run writes
MAX_LINE_BYTES = 1 << 26
_NO_FILES = {errno.ELOOP: "it is a symbolic link, and none is followed", errno.ENXIO: "it is no regular file"}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write ``path`` within it. What goes wrong is a user's to know: UserError, also where ``path`` is published."""
    require_own(path)
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise UserError for whatever keeps ``path`` from being read, but FileNotFoundError where nothing is there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: byte {error.start} is no UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def is_there(path: Path) -> bool:
    """Return whether anything has this name, a link that leads nowhere too; raises UserError where none can tell."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be looked at: {error.strerror or error}") from None
    return True


def open_regular(path: Path, flags: int) -> int:
    """Return a descriptor of ``path``, opened with ``flags``; raise OSError for anything but a regular file."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OSError(error.errno, _NO_FILES.get(error.errno or 0, error.strerror), str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, _NO_FILES[errno.ENXIO], str(path))
    return descriptor


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """Return the text of a UTF-8 file without a byte-order mark.

    Raises FileNotFoundError where there is none, and UserError for what is no such file or has more than ``limit``
    bytes.
    """
    with _reading(path), os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        content = file.read(limit + 1)
        _require_at_most(path, len(content), limit)
        return content.decode("utf-8-sig")


def read_lines(path: Path, *, limit: int = MAX_BYTES) -> Iterator[bytes]:
    """Yield the lines of a file, gzipped where its name ends in ``.gz``, but not a last one that has no end.

    Raises as ``read_text`` does, also for a line of more than MAX_LINE_BYTES; ``limit`` is of decompressed bytes.
    """
    num_bytes = 0
    with _reading(path), os.fdopen(open_regular(path, os.O_RDONLY), "rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            num_bytes += len(line)
            _require_at_most(path, num_bytes, limit)
            yield line
        _require_at_most(path, len(line), MAX_LINE_BYTES - 1)


def _require_at_most(path: Path, num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise UserError(f"{path} cannot be read: there are more than {limit} bytes")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` in one step: a reader, or a crash, sees the old file or the new one. Raises UserError."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        partial.unlink(missing_ok=True)  # of a process that was killed
        descriptor = open_regular(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
