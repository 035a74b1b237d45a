"""The one exception a user may see: its text is the whole message; and any exception on one line."""

from __future__ import annotations

MAX_CHARACTERS = 500  # of what is told of an error


class UserError(Exception):
    """A mistake of the user's or of the machine's: what was wrong, with the value, and what would be right."""


class AlreadyTold(UserError):
    """One that a process which this one started has told the user itself."""


# What other errors say, a KeyError for instance, needs their type beside it.
SELF_EXPLANATORY = (UserError, OSError, ValueError, ImportError)


def one_line(error: BaseException) -> str:
    """What a user, a client and a log are told of ``error``."""
    text = shortened(str(error)) or type(error).__name__
    if isinstance(error, SELF_EXPLANATORY) or type(error) is Exception or text == type(error).__name__:
        return text
    return shortened(f"{type(error).__name__}: {text}")


def shortened(text: str) -> str:
    """``text`` on one line, printable, without its middle where it is longer than MAX_CHARACTERS."""
    lines = filter(None, map(str.strip, text.splitlines()))
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(lines))
    tail = MAX_CHARACTERS // 3  # cause and advice come last
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - tail - 1]}…{text[-tail:]}"
