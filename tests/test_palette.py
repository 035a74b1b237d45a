"""All cases can be told apart by everyone: colors as others see them, contrasts, and markers."""

from itertools import combinations

import numpy as np
import pytest

from hybridgraph.cases import CASES, PEERS
from hybridgraph.report.palette import BACKGROUND, FLOOR, LOOKS, MUTED, TEXT

colorspacious = pytest.importorskip("colorspacious")  # where an interpreter was named that lacks it

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency (2009), at
# full severity, as colorspacious has it; the deficiency without the receptor is the anomaly's limit.
SIGHTS = (None, "deuteranomaly", "protanomaly", "tritanomaly")
LEAST_OF_THE_STUDY = 20.0  # in CAM02-UCS, where about 1 is just noticeable
LEAST_OF_ALL = 10.0


def rgb(color: str) -> list[float]:
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def seen(color: str, sight: str | None) -> np.ndarray:
    if sight is None:
        return np.array(rgb(color))
    space = {"name": "sRGB1+CVD", "cvd_type": sight, "severity": 100}
    return np.clip(colorspacious.cspace_convert(rgb(color), space, "sRGB1"), 0, 1)


def distance(one: str, other: str, sight: str | None) -> float:
    return float(colorspacious.deltaE(seen(one, sight), seen(other, sight), input_space="sRGB1"))


def contrast(one: str, other: str) -> float:
    """As the Web Content Accessibility Guidelines 2.2 define it, from relative luminances."""
    linear = [
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(color)] for color in (one, other)
    ]
    light, dark = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("sight", SIGHTS)
def test_colors_of_all_pairs_differ_in_every_sight(sight: str | None) -> None:
    study = [LOOKS[case.name].color for case in CASES]
    everything = study + [LOOKS[case.name].color for case in PEERS]
    for colors, least in ((study, LEAST_OF_THE_STUDY), (everything, LEAST_OF_ALL)):
        found = min(distance(one, other, sight) for one, other in combinations(colors, 2))
        print(f"least distance of {len(colors)}: {found:.1f}")
        assert found >= least


def test_a_well_known_pair_of_red_and_green_is_confused_by_deuteranopes_only() -> None:
    assert distance("#c00000", "#507000", None) > 3 * distance("#c00000", "#507000", "deuteranomaly")


def test_contrasts_are_readable() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert all(contrast(color, BACKGROUND) >= 4.5 for color in (TEXT, MUTED, FLOOR))
    assert all(contrast(look.color, BACKGROUND) >= 3 for look in LOOKS.values())


def test_each_case_has_a_marker_of_its_own() -> None:
    assert len({look.marker for look in LOOKS.values()}) == len({look.symbol for look in LOOKS.values()}) == len(LOOKS)
