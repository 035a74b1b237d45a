"""The one exception a user may see: its text is the whole message, on one line. And the exit code that it ends in."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hybridgraph.progress import say


class UserError(Exception):
    """A mistake of the user's or of the machine's: what was wrong, with the value, and what would be right."""


class AlreadyTold(UserError):
    """One that a process which this one started has told the user itself."""


def guarded(body: Callable[[], int], *, interrupted: str) -> int:
    """What ``body`` returns, or the exit code of what a user is told in one line instead."""
    try:
        return body()
    except AlreadyTold:
        return 2
    except UserError as error:
        say(f"error: {error}")
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "hybridgraph").startswith("hybridgraph"):
            raise
        say(f"error: {sys.executable} has no {error.name}: use .venv/bin/python, which the shell scripts make")
        return 2
    except KeyboardInterrupt:
        say(interrupted)
        return 130
