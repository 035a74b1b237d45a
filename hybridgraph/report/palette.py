"""How each case looks in every plot: one color, one marker, for the study's cases and the peers.

The colors were found by a search for the largest least distance, of all pairs, as people with normal sight,
deuteranopia, protanopia and tritanopia see them; each has a contrast of at least 3:1 to white, and text beside them is
written in ``TEXT``. In black and white the markers tell the cases apart. ``tests/test_palette.py`` measures all that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybridgraph.cases import CASES, PEERS, Case

TEXT = "#1f2328"
MUTED = "#57606a"  # of secondary text
GRID = "#d8dee4"
FLOOR = "#1f2328"
BACKGROUND = "#ffffff"


@dataclass(frozen=True, kw_only=True)
class Look:
    """A case's color and its marker, as matplotlib and plotly call it, and as a character."""

    color: str
    marker: str
    symbol: str
    glyph: str


_COLORS: Sequence[str] = (
    "#a27b87", "#ea7100", "#790a52", "#658de8", "#6715c8", "#1c5715",  # the study's cases
    "#7b6a00", "#8c7ca9", "#3e248c", "#006b7a", "#7041ff", "#aa2c48", "#74905b",  # the peers
)  # fmt: skip
_MARKERS: Sequence[tuple[str, str, str]] = (
    ("o", "circle", "●"), ("s", "square", "■"), ("^", "triangle-up", "▲"), ("D", "diamond", "◆"),
    ("v", "triangle-down", "▼"), ("P", "cross", "✚"), ("X", "x", "✖"), ("<", "triangle-left", "◀"),
    (">", "triangle-right", "▶"), ("*", "star", "★"), ("p", "pentagon", "⬟"), ("h", "hexagon", "⬢"),
    ("d", "diamond-tall", "♦"),
)  # fmt: skip

# A new case is drawn like this until it is given a color of its own.
_SPARE = Look(color=MUTED, marker="8", symbol="octagon", glyph="⯃")


def _looks(cases: Sequence[Case], numbers: slice) -> dict[str, Look]:
    """The looks of ``cases``, to which those of these ``numbers`` are given."""
    given = zip(_COLORS[numbers], _MARKERS[numbers], strict=True)
    looks = (Look(color=color, marker=marker, symbol=symbol, glyph=glyph) for color, (marker, symbol, glyph) in given)
    return {case.name: next(looks, _SPARE) for case in cases}


LOOKS = _looks(CASES, slice(6)) | _looks(PEERS, slice(6, None))


def look_of(case: Case) -> Look:
    """The look of ``case``, whatever its title says beside its name."""
    return LOOKS[case.name]
