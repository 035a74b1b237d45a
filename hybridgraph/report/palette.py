"""How each case looks in every plot: one color, one marker, for the study's cases and the peers.

The colors were found by a search for the largest least distance, of all pairs, as people with normal sight,
deuteranopia, protanopia and tritanopia see them; each has a contrast of at least 3:1 to white, and text beside them is
written in ``TEXT``. In black and white the markers tell the cases apart. ``tests/test_palette.py`` measures all that.
"""

from __future__ import annotations

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


_COLORS = (
    "#a27b87", "#ea7100", "#790a52", "#658de8", "#6715c8", "#1c5715",  # the study's cases
    "#7b6a00", "#8c7ca9", "#3e248c", "#006b7a", "#7041ff", "#aa2c48", "#74905b",  # the peers
)  # fmt: skip
_MARKERS = (
    ("o", "circle", "●"), ("s", "square", "■"), ("^", "triangle-up", "▲"), ("D", "diamond", "◆"),
    ("v", "triangle-down", "▼"), ("P", "cross", "✚"), ("X", "x", "✖"), ("<", "triangle-left", "◀"),
    (">", "triangle-right", "▶"), ("*", "star", "★"), ("p", "pentagon", "⬟"), ("h", "hexagon", "⬢"),
    ("d", "diamond-tall", "♦"),
)  # fmt: skip

LOOKS: dict[str, Look] = {
    case.name: Look(color=color, marker=marker, symbol=symbol, glyph=glyph)
    for case, color, (marker, symbol, glyph) in zip((*CASES, *PEERS), _COLORS, _MARKERS, strict=True)
}


def look_of(case: Case) -> Look:
    """The look of ``case``, whatever its title says beside its name."""
    return LOOKS[case.name]
