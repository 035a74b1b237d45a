"""Caches that are the user's alone: what a compiler finds in its cache, it runs.

By default torch keeps its own in the temporary directory, under a name that anybody can take first.
"""

from __future__ import annotations

import atexit
import grp
import os
import pwd
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

from hybridgraph.errors import UserError

# The variables by which a compiler is told where its cache is, and what that is called among ours.
COMPILER_CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}


def keep_compiler_caches_private() -> None:
    """Let compilers, in this process and in those it starts, keep what they make where nobody else can change it.

    To be called before torch is imported. Raises UserError for a directory that is not the user's alone, whether the
    environment names it or it would be ours.
    """
    for variable, name in COMPILER_CACHES.items():
        chosen = os.environ.get(variable)
        try:
            directory = make_private(Path(chosen)) if chosen else private_cache(name)
        except OSError as error:
            reason = f"{error.filename} cannot be made: {error.strerror}" if error.filename else str(error)
            raise UserError(f"no directory for {variable}: {reason}") from None
        except UserError as error:
            raise UserError(f"{variable}: {error}") from None
        os.environ[variable] = str(directory)


def private_cache(name: str) -> Path:
    """Return the directory ``name`` below the user's cache, or below a temporary one where nothing can be made there.

    Raises UserError for one that others may write to, and OSError where there is no temporary directory either.
    """
    try:
        return make_private(_user_cache() / "hybridgraph" / name)
    except OSError:
        return make_private(_temporary_cache() / name)


def make_private(directory: Path) -> Path:
    """Return the true path of ``directory``, which is made with mode 0700 where it is not there.

    Raises UserError where somebody else may change what lies there, or put another directory in its place.
    """
    real = directory.resolve()
    for place in (*reversed(real.parents), real):
        place.mkdir(mode=0o700, exist_ok=True)
        if reason := _why_changeable(place.lstat(), is_parent=place != real):
            raise UserError(f"{place} {reason}: what compilers keep in {real} could become another user's code")
    return real


def _why_changeable(status: os.stat_result, *, is_parent: bool) -> str:
    """Why a directory, or what it is a parent of, is not the user's alone; empty where it is."""
    trusted = (os.geteuid(), 0, *_unmapped_uids()) if is_parent else (os.geteuid(),)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in trusted:
        return f"belongs to user {status.st_uid}"
    if is_parent and mode & stat.S_ISVTX:  # nobody can move away there what is another's
        return ""
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_private_group(status.st_gid)):
        return f"may be written by others (mode {mode:04o}; chmod go-w)"
    return ""


def _unmapped_uids() -> tuple[int, ...]:
    """As whom a container shows the owners of what lies outside of it, root among them; empty outside of any."""
    try:
        everybody = Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", str(2**32 - 1)]
        return () if everybody else (int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii")),)
    except (OSError, ValueError):
        return ()


def _is_private_group(gid: int) -> bool:
    """Whether the group is the user's own and has no other member: many systems give every user one."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and {*group.gr_mem} <= {user.pw_name}


def _user_cache() -> Path:
    """Where programs keep caches of this user's; raises OSError where there is no home to keep one in."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path("~").expanduser().resolve(strict=True) / ".cache"


@cache
def _temporary_cache() -> Path:
    """A fresh directory that is gone when this process has ended."""
    directory, owner = Path(tempfile.mkdtemp(prefix="hybridgraph-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a child by fork
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    return directory
