"""Tables of text that fit a terminal: columns aligned, in several parts where one would be too wide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

WIDTH = 80
_FIGURE = re.compile(r"[-+–\d.,×%*?~ ]*")  # what a column of numbers holds


def markdown(
    heading: Sequence[str], rows: Iterable[Sequence[str]], *, keys: int = 1, together: int = 1, width: int = WIDTH
) -> str:
    """A Markdown table, or several below each other where one would be wider than ``width``.

    The first ``keys`` columns are in every part; of the others, ``together`` at a time are never parted.
    """
    columns = _columns(heading, rows)
    return "\n\n".join(_markdown(part) for part in _parts(columns, keys, together, width))


def plain(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for a terminal, which shows no Markdown: columns without lines between them."""
    return "\n\n".join(
        "\n".join("  ".join(cells).rstrip() for cells in zip(*map(_padded, part), strict=True))
        for part in _parts(_columns(heading, rows), keys=1, together=1, most=WIDTH)
    )


def _columns(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [list(column) for column in zip(heading, *rows, strict=True)]


def _parts(columns: list[list[str]], keys: int, together: int, most: int) -> list[list[list[str]]]:
    def width(part: list[list[str]]) -> int:
        return 1 + sum(3 + max(map(len, column)) for column in part)

    parts = [columns[:keys]]
    for first in range(keys, len(columns), together):
        group = columns[first : first + together]
        if len(parts[-1]) > keys and width(parts[-1] + group) > most:
            parts.append(columns[:keys])
        parts[-1] = parts[-1] + group
    return parts


def _markdown(columns: list[list[str]]) -> str:
    padded = [_padded(column) for column in columns]
    for column, cells in zip(columns, padded, strict=True):
        line = "-" * max(3, len(cells[0]))
        cells.insert(1, f"{line[1:]}:" if _is_figures(column) else line)
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*padded, strict=True))


def _padded(column: list[str]) -> list[str]:
    width, pad = max(3, *map(len, column)), str.rjust if _is_figures(column) else str.ljust
    return [pad(cell, width) for cell in column]


def _is_figures(column: list[str]) -> bool:
    """Whether most cells under the heading are numbers: the others may name what a last row is."""
    filled = [cell for cell in column[1:] if cell]
    return 2 * sum(_FIGURE.fullmatch(cell) is not None for cell in filled) >= len(filled)
