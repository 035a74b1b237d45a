"""The one exception a user may see: its text is the whole message, on one line."""


class UserError(Exception):
    """A mistake of the user's or of the machine's: what was wrong, with the value, and what would be right."""


class AlreadyTold(UserError):
    """One that a process which this one started has told the user itself."""
