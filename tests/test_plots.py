"""Plots that can be read: what is written beside them, labels apart, the same bytes each time."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from hybridgraph.cases import CASES, PEERS
from hybridgraph.places import PUBLISHED
from hybridgraph.report.evidence import gather
from hybridgraph.report.lines import band_of
from hybridgraph.report.load import load_results
from hybridgraph.report.plots import plot_table, spread
from hybridgraph.report.tables import METRICS, P99, TTFT, WARM, build_table

SEED = 11


def test_spread_keeps_labels_apart_in_their_order() -> None:
    print(f"seed {SEED}")
    random = np.random.default_rng(SEED)
    for _ in range(200):
        heights = list(random.uniform(0, 1, random.integers(1, 14)))
        moved = spread(heights, 0.05)
        assert sorted(range(len(heights)), key=heights.__getitem__) == sorted(range(len(moved)), key=moved.__getitem__)
        assert all(b - a >= 0.05 - 1e-9 for a, b in zip(sorted(moved), sorted(moved)[1:], strict=False))
        assert sum(moved) == pytest.approx(sum(heights)), "a group moves around its middle"


def test_spread_leaves_what_is_apart_where_it_is() -> None:
    assert spread([0.9, 0.1, 0.5], 0.05) == [0.9, 0.1, 0.5]
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The SVG of each metric of the published peers, which have the most lines, by the metric's key."""
    directory, found = PUBLISHED / "peers", {}
    results = load_results(directory)
    evidence = gather(directory, results, (*CASES, *PEERS))
    for metric in METRICS:
        path = tmp_path_factory.mktemp("plots") / "plot.png"
        for _ in range(2):
            plot_table(build_table(results, metric), results, evidence, path)
            files = path.read_bytes(), path.with_suffix(".svg").read_bytes()
            assert found.setdefault(f"{metric.key} bytes", files) == files, "the same bytes each time"
        assert files[0].startswith(b"\x89PNG")
        found[metric.key] = files[1].decode()
    return found


def test_plot_says_what_each_axis_shows_in_which_unit(drawn: dict[str, str]) -> None:
    for metric, axis in ((WARM, "warm TTFT, mean, ms (logarithmic)"), (P99, "P99 of TTFT, ms (logarithmic)")):
        assert f"<!-- {axis} -->" in drawn[metric.key]
        assert "<!-- prompt length, tokens -->" in drawn[metric.key]


def test_plot_names_every_line_and_its_last_value(drawn: dict[str, str]) -> None:
    results = load_results(PUBLISHED / "peers")
    table = build_table(results, WARM)
    for case in table.measured:
        value = table.values[case.column].dropna().iloc[-1]
        assert f"<!-- {case.title}  {value:.1f} -->" in drawn[WARM.key]
    assert re.search(r"<!-- floor \(.*\)  \d", drawn[WARM.key])


def test_plot_tells_its_bands_where_there_are_samples(drawn: dict[str, str]) -> None:
    assert "<!-- band: 5th to 95th percentile of the requests -->" in drawn[WARM.key]
    assert "band:" not in drawn[TTFT.key]


def test_band_holds_nine_in_ten_warm_requests() -> None:
    directory = PUBLISHED / "h200"
    samples = gather(directory, load_results(directory), CASES).samples["case1_baseline"]
    band = band_of(samples, WARM)
    assert band is not None
    warm = samples[(samples["warmth"] == "warm") & (samples["phase"] != "decode") & (samples["prompt_length"] == 200)]
    inside = warm["ttft_ms"].between(*band.loc[200]).mean()
    assert 0.88 <= inside <= 0.92


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "gtk4agg", "nonsense"])
def test_plots_load_whatever_backend_the_surroundings_name(backend: str) -> None:
    code = "import hybridgraph.report.plots"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
