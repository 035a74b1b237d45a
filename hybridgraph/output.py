"""Standard output, where results are printed: it may be closed, full, or read by someone who has seen enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from hybridgraph.errors import UserError
from hybridgraph.progress import give_up


class OutputLost(UserError):
    """What was to be printed could not be; whatever was measured is on disk."""


@contextmanager
def printing() -> Iterator[None]:
    """Print within it. A reader who is gone has seen enough; raises OutputLost for anything else in the way."""
    if sys.stdout is None:  # closed by whoever started this process: print does nothing
        yield
        return
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show is no failure
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        give_up(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OutputLost(f"cannot write to standard output: {error.strerror or error}") from None
