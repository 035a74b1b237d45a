"""The page as a reader has it: opened from disk in a real browser, looked at, pointed at, switched."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from browser import CHROMIUM, Browser, browser

from hybridgraph.cases import CASE2, CASE4_FUSED, CASES, PEERS
from hybridgraph.places import PUBLISHED
from hybridgraph.report.charts import Shown
from hybridgraph.report.evidence import Evidence, gather
from hybridgraph.report.load import load_results
from hybridgraph.report.main import generate_final_tables
from hybridgraph.report.page import Text, environment_text, render_page, spent
from hybridgraph.report.tables import METRICS

MAX_BYTES = 6_000_000
CHARTS = 8  # four metrics, single requests, warmth, where the time goes, power
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
PLOTS = "[...document.querySelectorAll('.plotly-graph-div')]"


def shown(name: str, told: str = "") -> Shown:
    directory = PUBLISHED / name
    results = load_results(directory)
    return Shown(told, results, gather(directory, results, (*CASES, *PEERS)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published run with its repetition beside it."""
    path = tmp_path_factory.mktemp("page") / "final_report.html"
    own, beside = shown("h200"), shown("repeated", "published/repeated")
    texts = [Text("Environment", environment_text(own.results)), Text("Odd", "a | b <script>throw 1</script>")]
    path.write_text(render_page(own, ["**First** sentence."], texts, beside), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as chromium:
        chromium.open(page, width=1280)
        chromium.wait_for(f"{PLOTS}.length && {PLOTS}.every((plot) => plot.querySelector('.main-svg'))")
        yield chromium


def test_page_is_one_file_that_asks_for_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < MAX_BYTES
    own = text.replace(re.search(r"<script>.*?</script>", text, re.S)[0], "")  # type: ignore[index] # plotly itself
    assert not re.search(r"(src|href)\s*=", own)
    assert "<script>throw 1</script>" not in text, "what a file holds is text"


@needs_browser
def test_page_opens_from_disk_without_errors_or_requests(page: Path, opened: Browser) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requested if not url.startswith(("data:", "blob:"))] == [page.as_uri()]


@needs_browser
def test_page_draws_every_chart_with_its_axes(opened: Browser) -> None:
    assert opened.evaluate(f"{PLOTS}.length") == CHARTS
    drawn = opened.evaluate(f"{PLOTS}.map((plot) => [plot.id, plot.querySelectorAll('.trace, .boxlayer path').length])")
    assert all(count >= 5 for _, count in drawn), drawn
    titles = opened.evaluate(f"{PLOTS}.map((plot) => plot.layout.yaxis.title.text)")
    assert all(title.endswith((", ms", ", W")) for title in titles), titles


@needs_browser
def test_page_tells_a_value_to_who_points_at_it(opened: Browser) -> None:
    chart = "document.querySelector('#chart-warm_ttft, #chart-warm')"
    opened.evaluate(f"{chart}.scrollIntoView()")
    opened.evaluate(f"Plotly.Fx.hover({chart}, [{{curveNumber: 5, pointNumber: 0}}])")
    opened.wait_for(f"{chart}.querySelector('.hoverlayer .hovertext')")
    told = opened.evaluate(f"{chart}.querySelector('.hoverlayer').textContent")
    assert re.search(r"10 tokens: \d+\.\d\d ms", told)


@needs_browser
@pytest.mark.parametrize(
    ("switch", "hidden"), [(CASE2.name, "CUDA Graph"), ("floor", "floor"), ("beside", "published")]
)
def test_page_switches_a_case_off_and_on_in_every_chart(opened: Browser, switch: str, hidden: str) -> None:
    def visible() -> set[str]:
        names = f"{PLOTS}.flatMap((plot) => plot.data.filter((t) => t.visible !== false).map((t) => t.name))"
        return set(opened.evaluate(names))

    before = visible()
    assert any(hidden in name for name in before)
    box = f"document.querySelector('input[data-show=\"{switch}\"]')"
    opened.evaluate(f"{box}.click()")
    assert visible() == {name for name in before if hidden not in name}
    opened.evaluate(f"{box}.click()")
    assert visible() == before
    assert opened.complaints == []


@needs_browser
def test_page_hides_a_metric_and_changes_scale_and_length(opened: Browser) -> None:
    details = "document.querySelector('details')"
    height = opened.evaluate(f"{details}.offsetHeight")
    opened.evaluate(f"{details}.querySelector('summary').click()")
    assert opened.evaluate(f"{details}.offsetHeight") < height / 3
    opened.evaluate(f"{details}.querySelector('summary').click()")
    click = "dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    scale = "document.querySelector('#chart-p99').layout.yaxis.type"
    assert opened.evaluate(scale) == "log"
    opened.evaluate(f"document.querySelector('#chart-p99 .updatemenu-button').{click}")
    opened.wait_for(f"{scale} === 'linear'")
    chosen = "document.querySelector('#chart-distribution')"
    before = opened.evaluate(f"{chosen}.data[0].y")
    opened.evaluate(f"{chosen}.querySelector('.updatemenu-header').{click}")
    opened.wait_for(f"{chosen}.querySelector('.updatemenu-dropdown-button')")
    opened.evaluate(f"{chosen}.querySelector('.updatemenu-dropdown-button').{click}")
    opened.wait_for(f"{chosen}.data[0].y[0] !== {before[0]}")
    assert opened.complaints == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_its_window(page: Path, opened: Browser, width: int, tmp_path: Path) -> None:
    opened.open(page, width=width)
    opened.wait_for(f"{PLOTS}.length && {PLOTS}.every((plot) => plot.querySelector('.main-svg'))")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    wide = f"{PLOTS}.filter((plot) => plot.querySelector('.main-svg').getBoundingClientRect().right > {width})"
    assert opened.evaluate(f"{wide}.length") == 0
    opened.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_the_page_are_valid_plotly(page: Path) -> None:
    """What the library is given unchecked when a page is written, checked here."""
    calls = re.findall(
        r"Plotly\.newPlot\(\s*\"[\w-]+\",\s*(\[.*?\]),\s*(\{.*?\}),\s*\{\"responsive", page.read_text(), re.S
    )
    assert len(calls) == CHARTS
    for data, layout in calls:
        go.Figure(data=json.loads(data), layout=json.loads(layout))


def test_page_of_rows_without_samples_has_no_single_requests() -> None:
    text = render_page(Shown("", load_results(PUBLISHED / "h200"), Evidence()), [], [])
    assert 'id="chart-distribution"' not in text and 'id="chart-p99"' in text


def test_spent_is_by_time_and_by_request() -> None:
    results = load_results(PUBLISHED / "h200")
    told = results.told(CASE4_FUSED, "gpu_spent", "p99", "10")
    row = next(frame for case, frame in spent(results).items() if case.name == CASE4_FUSED.name).loc[10]
    assert row["Power, W"] == pytest.approx(told["energy_j"] / told["wall_ms"] * 1e3)
    assert row["Energy of a request, J"] == pytest.approx(told["energy_j"] / 100)
    told["energy_j"] = "not told: Not Supported"
    row = next(frame for case, frame in spent(results).items() if case.name == CASE4_FUSED.name).loc[10]
    assert pd.isna(row["Power, W"]) and row["SM clock after the row, MHz"] == told["sm_clock_mhz"]


def test_environment_names_versions_and_escapes_what_is_in_them() -> None:
    results = load_results(PUBLISHED / "h200")
    results.identity["model"] = "a|b\nc"
    text = environment_text(results)
    assert "| packages.torch | 2.11.0 |" in text and "| model | a\\|b c |" in text


def test_every_metric_has_a_title_on_the_page() -> None:
    text = render_page(shown("h200"), [], [])
    assert all(f'id="chart-{metric.key}"' in text for metric in METRICS)


def test_command_writes_the_page_of_a_published_run_where_it_is_asked_to(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["--output-dir", "published/h200", "--page", str(page), "--beside", "published/repeated"]
    assert generate_final_tables(arguments) == 0
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < MAX_BYTES
    assert "5.51 times as fast as the baseline (35.24 ms)" in text, "the answer, computed"
    assert "CUDA Graphs alone 3.20 times, JIT alone 1.34 times" in text
    for heading in ("What graphs cost", "The study&#x27;s claims", "How sure the figures are", "Environment"):
        assert f"<summary>{heading}</summary>" in text
    assert list(tmp_path.iterdir()) == [page]
