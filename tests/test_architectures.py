"""Some of the architectures that ``sweep_architectures.py`` runs through every case; its page lists what it swept."""

import random

import pytest
from conftest import SEED
from sweep_architectures import MEASURED, PAGE, VARIANTS, configurations, sweep

SWEPT = configurations()
CHOSEN = random.Random(SEED).sample(sorted(SWEPT.keys() - VARIANTS.keys()), 5)


@pytest.mark.parametrize("name", [*VARIANTS, *CHOSEN])
def test_architecture_answers_as_generate_or_is_refused(name: str) -> None:
    row = sweep(name, SWEPT[name])
    print(row)
    if name in VARIANTS:
        assert row.outcomes["Case 1"] == row.outcomes["Case 3"] == MEASURED
    for case, outcome in row.outcomes.items():
        assert outcome and outcome.isprintable(), case


@pytest.mark.parametrize(
    "name", ["llama, linear rope", "llama4_text, full attention, temperature by position", "falcon, multi-query"]
)
def test_variant_that_graphs_can_serve_is_measured(name: str) -> None:
    assert sweep(name, SWEPT[name]).outcomes["Cases 2 and 4"] == MEASURED


def test_page_lists_every_architecture() -> None:
    listed = {
        line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines() if line.startswith("| ")
    }
    assert listed - {"architecture", "---"} == SWEPT.keys()
