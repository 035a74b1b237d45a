"""Reading one result file, every cell checked: an editor, a spreadsheet or a merge may have changed it since."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from io import StringIO
from pathlib import Path

import pandas as pd

from hybridgraph.bench.samples import IDENTITY_COLUMNS
from hybridgraph.errors import UserError
from hybridgraph.system.files import read_text

MAX_BYTES = 1 << 28  # half a million rows
LARGEST = 1e15  # beyond anything that was measured or counted
LONGEST = 1 << 40  # far beyond any prompt, and still an integer everywhere
REQUIRED = {"prompt_length", "mean_ms", "p99_ms", "itl_mean_ms", "samples"}
# A file from before such a column has unknown cells there.
ADDED_LATER = {"chunked", "sustained_floor_ms", "warm_samples", "first_itl_ms", "overflowed", "stopped", "launches"}
DELIMITERS = ",;\t"  # ours, and those of spreadsheets
_WHOLE = {"prompt_length", "seed"}
_NUMERALS = set("0123456789.eE+-")


@dataclass(frozen=True)
class _Column:
    """One column's cells, and where each of them stands."""

    path: Path
    name: str
    lines: Sequence[int]
    cells: Sequence[str]

    def require(self, complaint: Callable[[str], str]) -> None:
        """Raise UserError for the first cell that ``complaint`` has something to say of."""
        wrong = {cell: text for cell in set(self.cells) if (text := complaint(cell))}
        for line, cell in zip(self.lines, self.cells, strict=False) if wrong else ():
            if cell in wrong:
                raise self.error(line, wrong[cell])

    def error(self, line: int, text: str) -> UserError:
        return UserError(f"{self.path}, line {line}, column {self.name}: {text}")


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return one result file as ``columns``: times, counts and rates as floats, NaN where they are unknown.

    Other columns are left alone. Raises UserError, which names file, line and column of the first cell that no run
    writes, and for rows of more than one run.
    """
    found = _read_columns(path, columns)
    identity = {name: _shared(found[name]) for name in ("run_id", *IDENTITY_COLUMNS)}  # the run itself first
    numbers = {name: _numbers(column) for name, column in found.items() if name not in identity}
    table = pd.DataFrame(numbers | identity).reindex(columns=list(columns))
    repeated = table.index[table["prompt_length"].duplicated()]
    if len(repeated):
        lengths, first = found["prompt_length"], repeated[0]
        raise lengths.error(lengths.lines[first], f"{lengths.cells[first]} stands twice")
    return table


def _read_columns(path: Path, columns: Sequence[str]) -> dict[str, _Column]:
    """Those of ``columns`` that the file has, by name; raises UserError where one must be there and is not."""
    lines, (heading, *rows) = _read_rows(path)
    for column in columns:
        if column not in heading and column not in ADDED_LATER:
            raise UserError(f"{path}, line 1: column {column} is missing")
        if heading.count(column) > 1:
            raise UserError(f"{path}, line 1: column {column} stands there {heading.count(column)} times")
    if not rows:
        raise UserError(f"{path}, line 2: no row follows the heading")
    if {*map(len, rows)} != {len(heading)}:
        line, row = next(found for found in zip(lines[1:], rows, strict=True) if len(found[1]) != len(heading))
        column = heading[min(len(row), len(heading) - 1)]
        raise UserError(f"{path}, line {line}, column {column}: the row has {len(row)} of {len(heading)} cells")
    by_name = zip(heading, zip(*rows, strict=True), strict=True)
    return {name: _Column(path, name, lines[1:], cells) for name, cells in by_name if name in columns}


def _read_rows(path: Path) -> tuple[list[int], list[list[str]]]:
    """The rows that are not blank, the heading first, and the lines where they end."""
    try:
        text = read_text(path, limit=MAX_BYTES)
        heading = text.partition("\n")[0]
        reader = csv.reader(StringIO(text, newline=""), delimiter=max(DELIMITERS, key=heading.count))
        found = [(reader.line_num, row) for row in reader if row]
    except (FileNotFoundError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise UserError(f"{path}, line 1: the file is empty")
    return [line for line, _ in found], [row for _, row in found]


def _shared(column: _Column) -> str | float:
    """The value that all rows have in a column of the run's identity; raises UserError where one has another."""
    first = column.cells[0]
    column.require(lambda cell: "" if cell == first else f"'{cell}' instead of '{first}': a file holds one run's rows")
    if column.name == "started":
        column.require(lambda cell: "" if _is_time(cell) else f"'{cell}' is no time such as 2026-01-31T23:59:59+00:00")
    return _numbers(replace(column, cells=column.cells[:1]))[0] if column.name in _WHOLE else first


def _numbers(column: _Column) -> Sequence[float]:
    if column.name not in _WHOLE and (values := _evident_numbers(column)) is not None:
        return values
    column.require(lambda cell: _complaint_of_number(cell, column.name))
    kind = int if column.name in _WHOLE else float
    return [kind(float(cell)) if cell else math.nan for cell in column.cells]


def _evident_numbers(column: _Column) -> Sequence[float] | None:
    """The numbers of a column that is right at a glance; None for one whose cells must be looked at each."""
    try:
        values = [float(cell) if cell else math.nan for cell in column.cells]
    except ValueError:
        return None
    known = [value for value in values if value == value]
    complete = len(known) == len(values) or column.name not in REQUIRED
    fine = complete and _NUMERALS.issuperset("".join(column.cells)) and all(0 < value < LARGEST for value in known)
    return values if fine else None


def _complaint_of_number(cell: str, name: str) -> str:
    """What is wrong with a number of the column ``name``; empty where nothing is."""
    if not cell:
        return "the cell is empty" if name in REQUIRED else ""
    if re.fullmatch("[0-9]+,[0-9]+", cell):
        return f"'{cell}' has a decimal comma: write {cell.replace(',', '.')}"
    try:
        value = float(cell)
    except ValueError:
        return f"'{cell}' is no number"
    if not 0 <= value < LARGEST or (value == 0 and name in REQUIRED):
        return f"{cell} is no time, count or rate"
    if not _NUMERALS.issuperset(cell):  # 1_000, say
        return f"'{cell}' is no number"
    if name in _WHOLE and not value.is_integer():
        return f"{cell} is no {name.replace('_', ' ')}"
    if name == "prompt_length" and not 1 <= value <= LONGEST:
        return f"{cell} is no prompt length"
    return ""


def _is_time(cell: str) -> bool:
    """Whether ``cell`` is an ISO 8601 date and time with its offset, to the second: what a run writes."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", cell, re.ASCII):
        return False
    try:
        return bool(datetime.fromisoformat(cell))
    except ValueError:
        return False
