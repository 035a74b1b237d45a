"""What docs/architecture.md says of the software is so."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from hybridgraph.cases import CASE4
from hybridgraph.cli import commands
from hybridgraph.config import Config
from hybridgraph.engine.graphs.policy import GraphCache

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hybridgraph"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DATA = {"config.py", "settings.py"}  # makes and checks the data that the functions hand on
WRAPPERS = {"told"}  # around an entry point, whatever its arguments are


def functions_on_the_stack() -> list[tuple[str, str]]:
    """(name, file) of every function of the package that is being called, the outermost first."""
    found = []
    for caller in reversed(inspect.stack()[1:]):
        path = Path(caller.filename)
        if path.is_relative_to(PACKAGE) and path.name not in DATA and caller.function not in WRAPPERS:
            found.append((caller.function, str(path.relative_to(PACKAGE))))
    return found


def test_way_of_a_setting_is_through_the_functions_that_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where the settings are made, from there to where the pool takes the number, and to the comparison."""
    parsed: list[tuple[str, str]] = []
    taken: list[tuple[str, str]] = []
    checked, made = Config.__post_init__, GraphCache.__init__

    def watched_settings(config: Config) -> None:
        parsed.extend([] if parsed else functions_on_the_stack())
        checked(config)

    def watched_pool(cache: GraphCache[Any], *arguments: Any, **keywords: Any) -> None:
        assert keywords["max_graphs"] == 3
        taken.extend(functions_on_the_stack())
        made(cache, *arguments, **keywords)

    monkeypatch.setattr(Config, "__post_init__", watched_settings)
    monkeypatch.setattr(GraphCache, "__init__", watched_pool)
    monkeypatch.setattr("hybridgraph.serving.server.serve", lambda _, opened, **__: opened(print).close() or 0)
    flags = ("--max-graphs", "3", "--precapture", "10,20", "--model", "tiny-llama", "--device", "cpu")
    assert commands.serve(CASE4, flags) == 0
    own = [(function, "engine/graphs/policy.py") for function in ("__init__", "_over_budget")]
    way = list(dict.fromkeys([*parsed, *taken, *own]))
    assert re.findall(r"^\d+\. `(?:\w+\.)?(\w+)` in `([\w/.]+)`", PAGE, flags=re.MULTILINE) == way
    assert len(way) <= 8
