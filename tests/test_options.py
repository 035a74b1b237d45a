"""The options of the Python API are those of the settings, and their mistakes are told in one line."""

from dataclasses import fields
from typing import Any

import pytest

from hybridgraph import EngineOptions, HybridEngine
from hybridgraph.config import SETTINGS, EngineSettings
from hybridgraph.engine.settings import SETTING_OF
from hybridgraph.errors import UserError

TINY: dict[str, Any] = {
    "load_format": "dummy", "dtype": "float32", "device": "cpu", "ops": "native", "precapture": (8,),
    "async_capture": False,
}  # fmt: skip


@pytest.mark.parametrize("name", [option.name for option in fields(EngineOptions) if option.name in SETTINGS])
def test_engine_options_have_the_ranges_of_the_settings(name: str) -> None:
    setting = SETTINGS[name]
    for value in [*(setting.limits or ()), *setting.choices]:
        options = {"forward": "fused", name: value}  # which every value of the others goes with
        assert getattr(EngineOptions(precapture=(), **options), name) == value
    wrong = setting.limits[1] + 1 if setting.limits else "x"
    with pytest.raises(UserError, match=f"^{name} '?{wrong}'?: "):
        EngineOptions(**{name: wrong})


def test_engine_options_by_default_are_the_settings() -> None:
    for option in fields(EngineOptions):
        if option.name in SETTINGS and option.name != "ops":  # which follows the case on a command line
            assert option.default == getattr(EngineSettings, option.name)
    assert EngineOptions().positions == EngineSettings().positions


def test_engine_options_know_positions_by_both_names() -> None:
    assert EngineOptions.of(max_seq_len=600) == EngineOptions.of(positions=600) == EngineOptions(positions=600)
    for name in ("positions", "max_seq_len"):
        with pytest.raises(UserError, match="positions 0: from 1 to"):
            EngineOptions.of(**{name: 0})
        with pytest.raises(UserError, match="positions None: a whole number"):
            EngineOptions.of(**{name: None})
    with pytest.raises(UserError, match="positions and max_seq_len are one option"):
        EngineOptions.of(max_seq_len=600, positions=600)


@pytest.mark.parametrize("name", ["max_length", "lengths", "temperature"])
def test_from_pretrained_with_an_unknown_option_names_it(name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: no option of an engine; there are ops, forward, .*max_seq_len$"):
        HybridEngine.from_pretrained("tiny-llama", **TINY, **{name: 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["positions", *SETTING_OF.values()])
def test_from_pretrained_has_room_for_a_prompt_once_it_is_asked_for(name: str) -> None:
    with HybridEngine.from_pretrained("tiny-llama", **TINY) as engine, pytest.raises(UserError) as error:
        engine.generate([1] * 600, 1)
    assert str(error.value) == (
        "600 prompt ids and 1 new tokens exceed the 512 positions: ask for more with max_seq_len=601"
    )
    with HybridEngine.from_pretrained("tiny-llama", **TINY, **{name: 601}) as engine:
        assert len(list(engine.generate([1] * 600, 1))) == 1
        with pytest.raises(UserError, match="601 prompt ids and 1 new tokens exceed the 601 positions"):
            engine.generate([1] * 601, 1)
