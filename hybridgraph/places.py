"""Where results lie: a user's own in ``output/``, those that come with the project in ``output/published/NAME/``.

No command changes what is published: ``require_own`` stands before everything that is written.
"""

from __future__ import annotations

from pathlib import Path

from hybridgraph.errors import UserError
from hybridgraph.settings import parse_path

OUTPUT = Path("output")  # in the current directory, as every relative path of a user's
PUBLISHED = Path(__file__).resolve().parent.parent / "output" / "published"
SHOWN = PUBLISHED / "h200"  # where a user has no results yet


def is_published(path: Path) -> bool:
    """Whether ``path`` is among the published results of a checkout, this one or another; links are followed."""
    try:
        where = path.resolve()
    except (OSError, RuntimeError):  # a current directory that is gone, links in a circle: nobody can write there
        return False
    return any(
        place.name == PUBLISHED.name
        and place.parent.name == OUTPUT.name
        and (place.parents[1] / "hybridgraph").is_dir()
        for place in (where, *where.parents)
    )


def require_own(path: Path) -> None:
    """Raise UserError where ``path`` is published and so must not change."""
    if is_published(path):
        raise UserError(f"{path} is among the published results, which stay as they are: give another --output-dir")


def find_results(name: str) -> Path:
    """The directory that a user means: a path, or ``published/NAME`` from wherever the command was started."""
    path = Path(parse_path(name))
    published = PUBLISHED.parent / path
    return published if not path.exists() and is_published(published) and published.exists() else path
