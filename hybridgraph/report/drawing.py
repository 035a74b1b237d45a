"""matplotlib, imported where it finds no settings of a user's.

It reads settings while it is imported: from three variables, and from files in the current directory, in the home and
where a variable says. They are for a user's own figures. A notebook names a backend that exists only there, a file may
be broken, and a home without a place to write to makes a difference to matplotlib, not to us.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from hybridgraph.system.caches import private_cache

_VARIABLES = ("MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR")


@contextmanager
def _away_from_settings() -> Iterator[None]:
    """Be in an empty directory of ours, where matplotlib also keeps its list of fonts."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    before = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        os.environ |= {"MPLCONFIGDIR": str(private_cache("matplotlib")), "MPLBACKEND": "agg"}
        os.chdir(os.environ["MPLCONFIGDIR"])
        yield
    finally:
        os.fchdir(here)
        os.close(here)
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that a list of fonts is made takes no line of ours
with _away_from_settings():
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["Figure", "FuncFormatter", "LogLocator", "NullFormatter", "mpl"]
