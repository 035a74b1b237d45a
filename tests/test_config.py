"""A setting is one record: what it may be, who uses it, and what it must match."""

import ast
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hybridgraph.bench.samples import IDENTITY_COLUMNS, RunIdentity
from hybridgraph.cases import (
    CASE1,
    CASE3,
    CASE4,
    CASE4_FUSED,
    CASE5,
    ENGINES,
    HF_STATIC,
    PAPER_PROMPT_LENGTHS,
    Case,
    family,
)  # fmt: skip
from hybridgraph.config import (
    OWNERS,
    SETTINGS,
    Config,
    EngineSettings,
    ModelSettings,
    ProtocolSettings,
    ServingSettings,
    own_settings_of,
    settings_of,
)
from hybridgraph.contract import SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.report.ablation import CHANGED
from hybridgraph.settings import Program, Setting, Told, parse_lengths

PACKAGE = Path(__file__).resolve().parent.parent / "hybridgraph"
GENERATOR = "the generator"
FOLLOWS = {"device": "cpu", "precapture": "10-500:10"}
# What a generator of Case 4 tells that was opened without a flag, on a machine without a GPU.
USUAL = Config(model="tiny-llama", dtype="float32", device="cpu", max_seq_len=512, ops="torchscript").as_json()


def refusal(asked: Config, served: dict[str, Any]) -> str:
    """What a client is told that asks for something else than was ``served``."""
    with pytest.raises(UserError) as error:
        asked.require_opened_as(served, GENERATOR, follows=FOLLOWS)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("5", (5,)), ("1-4", (1, 2, 3, 4)), ("10-50:20", (10, 30, 50)), ("3,1-2,3", (3, 1, 2)), ("10-45:20", (10, 30))],
)
def test_parse_lengths_of_a_specification_returns_its_lengths(text: str, lengths: tuple[int, ...]) -> None:
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize("text", ["", "0", "-5", "a", "5-1", "1-10:0", "1,,2", "1.5", "9999999999"])
def test_parse_lengths_of_anything_else_raises_one_line(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_lengths(text)
    assert "\n" not in str(error.value)


def test_config_by_default_is_the_papers_protocol() -> None:
    config = Config()
    assert config.prompt_lengths == PAPER_PROMPT_LENGTHS
    assert (config.ttft_iterations, config.p99_iterations, config.warmup, config.decode_tokens) == (5, 100, 0, 0)
    assert (config.request_temperature, config.positions) == (0.7, 512)


def test_config_has_each_setting_from_exactly_one_owner() -> None:
    names = [setting.name for owner in OWNERS for setting in own_settings_of(owner)]
    assert sorted(names) == sorted(set(names)) == sorted(SETTINGS)
    assert set(SETTINGS) == {setting.name for setting in settings_of(Config)}
    assert set(Config().as_json()) == set(SETTINGS), "what was given is no setting, and is not recorded"


def test_config_as_json_survives_json() -> None:
    config = Config(prompt_lengths=(3, 5), seed=4)
    assert json.loads(json.dumps(config.as_json())) == config.as_json()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_setting_of_a_wrong_type_raises_one_line(setting: Setting) -> None:
    """As a generator may tell it that is none of ours."""
    for value in ({}, [None], object()):
        if setting.name != "prompt_lengths":  # nobody but the command line gives it
            with pytest.raises(UserError, match=setting.flag) as error:
                setting.require(value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", [s for s in SETTINGS.values() if s.limits], ids=lambda setting: setting.name)
def test_setting_out_of_its_range_raises_with_value_and_range(setting: Setting) -> None:
    assert setting.limits is not None
    least, most = setting.limits
    setting.check(least)
    setting.check(most)
    for value in (least - 1, most + 1):
        with pytest.raises(UserError, match=f"{setting.flag} {value}: from {least} to {most}"):
            setting.check(value)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_setting_that_separates_rows_names_a_column_of_theirs(setting: Setting) -> None:
    assert setting.separates in ("", *IDENTITY_COLUMNS)
    assert (setting.told is Told.BY_ROWS) or not setting.separates


FIRST = (
    "model load_format dtype device seed max_seq_len ops forward engine max_graphs max_graph_mib precapture "
    "async_capture prompt_lengths decode_tokens ttft_iterations p99_iterations warmup pause_ms temperature greedy "
    "prompt_file socket share_buffers output_dir resume json"
)


def names(chosen: Callable[[Setting], bool]) -> set[str]:
    """Of the settings that there were when this was written: others need no change here."""
    return {name for name in FIRST.split() if chosen(SETTINGS[name])}


def test_records_say_what_a_setting_is_for() -> None:
    """Against lists by hand, so that a record that says something else is noticed."""
    pool = {"max_graphs", "max_graph_mib", "precapture", "async_capture"}
    opening = pool | {"model", "load_format", "dtype", "device", "seed", "ops", "forward", "max_seq_len"}
    assert names(lambda s: s.opens and Program.CLIENT in s.programs) == opening
    assert names(lambda s: not s.decides) == {"resume", "json", "output_dir", "socket"}, "--resume may have others"
    told = pool | {"seed", "share_buffers", "decode_tokens", "prompt_file"}
    assert names(lambda s: s.told is Told.WHERE_UNUSUAL) == told
    assert names(lambda s: s.told is Told.WHERE_DIFFERENT) == {"max_seq_len"}
    assert names(lambda s: s in CHANGED) == pool | {"ops", "share_buffers"}
    assert SETTINGS["weights"] in CHANGED, "what only some cases have is a part of theirs"
    assert names(lambda s: not s.concerns(CASE1)) == pool | {"share_buffers", "socket", "ops", "forward", "engine"}


def test_rows_are_separated_by_what_their_settings_say() -> None:
    assert set(RunIdentity.COMPARABLE) == {"device", "model", "dtype", "load_format", "sampling", "protocol"}


def test_positions_grow_with_what_is_asked() -> None:
    assert Config(prompt_lengths=(600,), decode_tokens=10).positions == 640
    assert Config(prompt_lengths=(10,), max_seq_len=128).positions == 128


def test_positions_are_what_the_model_has_room_for() -> None:
    assert Config(prompt_lengths=(250,)).fitted(256, "m").positions == 256
    assert Config(max_seq_len=300, prompt_lengths=(10,)).fitted(4096, "m").positions == 300
    for config in (Config(prompt_lengths=(256,)), Config(prompt_lengths=(10,), max_seq_len=257)):
        with pytest.raises(UserError, match="257 positions exceed the 256 of m"):
            config.fitted(256, "m")


def test_opened_as_takes_what_opens_a_source_and_leaves_the_requests() -> None:
    served = Config(model="m", dtype="float16", load_format="auto", max_graphs=7, seed=3).as_json()
    asked = Config.of(dtype="float16", greedy=True)
    opened = asked.opened_as(served)
    assert opened == Config(model="m", dtype="float16", load_format="auto", max_graphs=7, seed=3, greedy=True)
    assert opened.given == asked.given, "what it was opened with is not what was asked for"
    assert asked.opened_as({}) == asked


def test_require_opened_as_without_flags_takes_any_generator() -> None:
    for served in (USUAL, USUAL | {"seed": 5, "max_graphs": 20, "load_format": "auto", "async_capture": False}):
        Config.of(greedy=True, p99_iterations=3).require_opened_as(served, GENERATOR, follows=FOLLOWS)


@pytest.mark.parametrize("asked", ["9,4", "4,9", "4-9:5", "9,4,9"])
def test_require_opened_as_compares_lengths_to_capture_by_what_they_mean(asked: str) -> None:
    Config.of(precapture=asked).require_opened_as(USUAL | {"precapture": "9,4"}, GENERATOR, follows=FOLLOWS)
    for served, has in (("4,10", "4,10"), (None, "10-500:10")):
        told = refusal(Config.of(precapture=asked), USUAL | {"precapture": served})
        assert told == f"--precapture {asked}: {GENERATOR} has {has}"


@pytest.mark.parametrize(
    ("asked", "has", "auto", "accepted"),
    [
        ("auto", "cpu", "cpu", True),
        ("auto", "cpu", "cuda", False),
        ("auto", "cuda:1", "cuda", False),
        ("auto", "cuda", "cuda", True),
        ("cuda", "cuda:0", "cuda", True),
        ("cuda:0", "cuda", "cuda", True),
        ("cuda", "cuda:1", "cuda", False),
    ],
)
def test_require_opened_as_takes_auto_for_what_it_means_there(asked: str, has: str, auto: str, accepted: bool) -> None:
    config, served, follows = Config.of(device=asked), USUAL | {"device": has}, FOLLOWS | {"device": auto}
    if accepted:
        config.require_opened_as(served, GENERATOR, follows=follows)
    else:
        with pytest.raises(UserError, match=f"--device {asked}: {GENERATOR} has {has}"):
            config.require_opened_as(served, GENERATOR, follows=follows)


@pytest.mark.parametrize("setting", [s for s in SETTINGS.values() if s.opens], ids=lambda setting: setting.name)
def test_require_opened_as_of_no_configuration_of_ours_raises_one_line(setting: Setting) -> None:
    for value in ([1], {"a": 1}, "", -1):
        assert refusal(Config(), USUAL | {setting.name: value}).startswith(f"{GENERATOR} tells no configuration")


@pytest.mark.parametrize(
    ("case", "unused"),
    [
        (CASE1, ["--no-async-capture", "--engine vllm", "--max-graphs 3", "--ops native"]),
        (CASE3, ["--no-async-capture", "--engine vllm", "--max-graphs 3"]),
        (CASE4, ["--engine vllm"]),
        (CASE5, ["--no-async-capture", "--max-graphs 3", "--ops native"]),
        (HF_STATIC, ["--no-async-capture", "--max-graphs 3", "--ops native"]),
    ],
)
def test_unused_by_a_case_names_what_it_has_no_part_for(case: Case, unused: list[str]) -> None:
    program = Program.PAIR if case.generator else Program.CASE
    assert Config().unused_by(program, case) == []
    asked = Config.of(max_graphs=3, ops="native", engine="vllm", async_capture=False, decode_tokens=4)
    assert asked.unused_by(program, case) == unused


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_unused_by_counts_what_was_given_also_at_its_default(setting: Setting) -> None:
    asked = Config.of(**{setting.name: setting.default})
    expected = [] if setting.used_by(Program.CASE, CASE1) else [setting.as_flag(setting.default)]
    assert asked.unused_by(Program.CASE, CASE1) == expected
    assert Config(**{setting.name: setting.default}).unused_by(Program.CASE, CASE1) == []


def test_arguments_for_a_generator_are_what_it_uses() -> None:
    asked = Config.of(
        seed=0, prompt_lengths=(4, 9), p99_iterations=3, output_dir="x", max_graphs=50, share_buffers=True
    )
    assert asked.arguments(Program.GENERATOR, CASE4) == ["--max-graphs=50", "--prompt-lengths=4,9", "--seed=0"]


def test_as_flag_spells_what_is_parsed() -> None:
    assert SETTINGS["max_seq_len"].flag == "--max-seq-len"
    assert SETTINGS["share_buffers"].as_flag(True) == "--share-buffers"
    assert SETTINGS["async_capture"].as_flag(False) == "--no-async-capture"
    assert SETTINGS["prompt_file"].as_flag("my text.txt") == "--prompt-file 'my text.txt'"


def test_output_path_takes_names_of_any_script() -> None:
    assert Config(output_dir="größe/結果").output_path.name == "結果"


def test_owners_see_what_is_theirs_alone() -> None:
    for owner, lacking in (
        (ModelSettings, {"ops", "ttft_iterations", "output_dir", "socket"}),
        (EngineSettings, {"p99_iterations", "temperature", "resume", "share_buffers"}),
        (ProtocolSettings, {"model", "max_graphs", "output_dir"}),
        (ServingSettings, {"model", "seed", "json"}),
    ):
        assert not lacking & {setting.name for setting in settings_of(owner)}, owner


def lists_of_settings(source: str) -> list[set[str]]:
    """The tuples, lists and sets in ``source`` of which most strings are settings, and some nothing else.

    ``model``, for instance, is also a column of rows and a fact of a source.
    """
    found, ambiguous = [], {*IDENTITY_COLUMNS, *(each.name for each in fields(SourceInfo))}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            names = {element.value for element in node.elts if isinstance(element, ast.Constant)}
            settings = names & SETTINGS.keys()
            if len(settings) > 1 and settings - ambiguous and len(names - settings) < len(settings):
                found.append({str(name) for name in names})
    return found


def test_no_list_of_settings_is_kept_by_hand() -> None:
    assert lists_of_settings('UNTOLD = ("seed", "max_graphs")') == [{"seed", "max_graphs"}]
    kept = {str(path): lists_of_settings(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert {path: lists for path, lists in kept.items() if lists} == {}


def test_family_of_a_case_is_what_its_script_measures() -> None:
    assert family(CASE1) == (CASE1,)
    assert family(CASE4) == family(CASE4_FUSED) == (CASE4, CASE4_FUSED)
    assert family(CASE5) == family(HF_STATIC) == tuple(ENGINES.values())
    assert list(ENGINES) == [
        case.script.split()[-1].replace("case5_tensorrt_llm.py", "tensorrt-llm") for case in ENGINES.values()
    ]
