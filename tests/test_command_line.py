"""A command line means what the records say, and a flag that was given counts as given."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from architectures import tiny_model

from hybridgraph.cases import CASE1, CASE2, CASE4, CASE4_FUSED, CASE5, CASES, ENGINES, VLLM, Case, family
from hybridgraph.cli import commands
from hybridgraph.config import SETTINGS, Config
from hybridgraph.errors import UserError
from hybridgraph.places import find_results
from hybridgraph.settings import Program, Setting, parse_lengths, parse_path
from hybridgraph.system.command_line import parse_args

ROOT = Path(__file__).resolve().parent.parent
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDGRAPH_")} | {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
OPENING = [s for s in SETTINGS.values() if s.opens and s.used_by(Program.CLIENT, CASE4)]
# What a generator of Case 4 tells that was opened without a flag on a machine without a GPU, and what an explicit flag
# of a client says where the default has no spelling of its own.
USUAL: dict[str, Any] = {
    "model": "tiny-llama", "dtype": "float32", "device": "cpu", "max_seq_len": 512, "ops": "torchscript"
}  # fmt: skip
SPELLED = USUAL | {"device": "auto", "precapture": "10-500:10", "max_graph_mib": 64}
FOLLOWS = {"device": "cpu", "precapture": "10-500:10"}
OTHERWISE = {"model": "llama-2-7b", "device": "cuda:1", "precapture": "10,20"}


def parse(argv: str) -> Config:
    return parse_args(argv.split(), Program.PAIR, family(CASE4))


def another(setting: Setting, value: Any) -> Any:
    """A value of ``setting`` that is not ``value``."""
    if isinstance(setting.default, bool):
        return not value
    if setting.choices:
        return next(choice for choice in setting.choices if choice != value)
    return value + 1 if isinstance(value, int) else OTHERWISE[setting.name]


def some(setting: Setting) -> Any:
    """Any value of ``setting``."""
    if isinstance(setting.default, bool):
        return random.random() < 0.5
    if setting.choices:
        return random.choice(setting.choices)
    if setting.limits is not None:
        return setting.parse(str(random.randint(1, int(setting.limits[1]))))
    if setting.parse is parse_lengths:
        return tuple(random.sample(range(1, 1000), 5))
    return {"device": "cuda:3", "precapture": "1-3"}.get(setting.name, "-a b/'c'")


def test_parse_args_without_flags_gives_the_defaults() -> None:
    assert parse("") == Config() and parse("").given == frozenset()


def test_parse_args_brings_flags_to_their_fields() -> None:
    argv = "--model x --dtype bfloat16 --prompt-lengths 1-3 --greedy --no-async-capture --share-buffers --seed 7"
    asked = {
        "model": "x", "dtype": "bfloat16", "prompt_lengths": (1, 2, 3), "greedy": True, "async_capture": False,
        "share_buffers": True, "seed": 7,
    }  # fmt: skip
    config = parse(argv)
    assert config == Config(**asked)
    assert config.given == frozenset(asked)
    assert config.request_temperature == 0.0


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_parse_args_reads_what_a_setting_writes(setting: Setting) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    random.seed(seed)
    for _ in range(5):
        value = some(setting)
        more = ["--load-format=auto"] if setting.name == "prompt_file" else []
        config = parse_args([*more, setting.argument(value)], Program.GENERATOR, CASES)
        assert getattr(config, setting.name) == value and setting.name in config.given


def test_parse_args_takes_the_last_of_several_flags() -> None:
    assert parse("--greedy --no-greedy --async-capture --no-async-capture --seed 1 --seed 2") == Config(
        async_capture=False, seed=2
    )


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ("--no-such-flag", "--no-such-flag"),
        ("--dtype int8", "int8"),
        ("--prompt-lengths 0", "0"),
        ("--prompt-lengths 10-5", "10-5"),
        ("--p99-iterations -1", "-1"),
        ("--p99-iterations 99999999999", "99999999999"),
        ("--ttft-iterations many", "many"),
        ("--pause-ms -1", "pause-ms -1"),
        ("--pause-ms nan", "nan"),
        ("--output-dir=", "output-dir is empty"),
        ("--model=", "model is empty"),
        ("--ttft-iterations 0 --p99-iterations 0", "nothing to measure"),
        ("--device cuda:99999999999999999999", "cuda:99"),
        ("--max-seq-len 0", "max-seq-len 0"),
        ("--temperature 0", r"temperature 0.0: .*\(--greedy takes the likeliest\)"),
        ("--temperature 101", "temperature 101.0: from 0.001 to 100"),
        ("--temperature 1e-39", "temperature 1e-39"),
        ("--output-dir a\udcfe", "output-dir 'a.udcfe': a name that is no UTF-8"),
        ("--model é\udcfe", "no UTF-8"),
        ("--temperature nan", "nan"),
        ("--max-graphs 0", "max-graphs 0"),
        ("--device gpu", "gpu"),
        ("--max-seq-len 100", "max-seq-len 100"),
        ("--prompt-file x.txt", "--load-format auto"),
        ("--precapture 5-1", "5-1"),
        ("--precapture 1-9 --max-graphs 3", "9 lengths for --max-graphs 3"),
        ("--seed -1", "-1"),
        ("--socket here", "--socket: this script chooses it itself"),
    ],
)
def test_parse_args_of_a_mistake_tells_its_value(argv: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        parse(argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("program", "cases", "chosen"),
    [
        (Program.STUDY, CASES, {"forward", "socket", "engine", "launch"}),
        (Program.PAIR, family(CASE4), {"socket"}),
        (Program.CLIENT, family(CASE4), set()),
        (Program.CASE, [CASE1], set()),
    ],
)
def test_parse_args_refuses_what_a_program_chooses_itself(
    program: Program, cases: "list[Case]", chosen: set[str]
) -> None:
    refused = set()
    for setting in SETTINGS.values():
        try:
            parse_args([setting.argument(some(setting))], program, cases)
        except UserError as error:
            if str(error) == f"{setting.flag}: this script chooses it itself":
                refused.add(setting.name)
    assert refused == chosen


def test_parse_args_of_a_generator_is_told_what_to_be_ready_for_not_what_to_measure() -> None:
    assert parse_args(["--max-seq-len", "64"], Program.GENERATOR, family(CASE4)).positions == 64


@pytest.mark.parametrize("setting", [s for s in SETTINGS.values() if s.parse is parse_path], ids=lambda s: s.name)
def test_parse_args_of_a_path_knows_the_home_directory(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves ``~`` alone behind ``=``."""
    monkeypatch.setenv("HOME", "/home/someone")
    for given, path in (("~/x", "/home/someone/x"), ("~", "/home/someone"), ("a~b", "a~b"), ("./~/x", "./~/x")):
        config = parse_args([f"{setting.flag}={given}", "--load-format=auto"], Program.CLIENT, family(CASE4))
        assert getattr(config, setting.name) == path


def test_an_output_directory_behind_an_equals_sign_is_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--output-dir=~/x", "--device=cpu", "--model=no/such")
    command = [sys.executable, str(ROOT / "case1_baseline.py"), *flags]
    run = subprocess.run(command, cwd=tmp_path, env=ENVIRON | {"HOME": str(tmp_path / "home")}, capture_output=True)
    assert run.returncode == 2
    assert (tmp_path / "home" / "x" / "environment.json").exists() and not (tmp_path / "~").exists()
    tables = subprocess.run(
        [sys.executable, str(ROOT / "generate_final_tables.py"), "--output-dir=~/none"],
        cwd=tmp_path, env=ENVIRON | {"HOME": str(tmp_path / "home")}, capture_output=True, text=True,
    )  # fmt: skip
    assert f"error: {tmp_path}/home/none holds no result files" in tables.stderr
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert find_results("~/x") == tmp_path / "home" / "x", "also a run that others are compared with"


# What was given, against what is.


@pytest.mark.parametrize("setting", OPENING, ids=lambda setting: setting.name)
def test_a_flag_at_its_default_is_refused_by_a_generator_that_was_opened_otherwise(setting: Setting) -> None:
    spelled = SPELLED.get(setting.name, setting.default)
    opened = Config().as_json() | USUAL
    asked = parse_args([setting.argument(spelled)], Program.CLIENT, family(CASE4))
    if setting.name != "max_graph_mib":  # without a limit is the default, which no flag asks for
        asked.require_opened_as(opened, "the generator", follows=FOLLOWS)
    has = another(setting, opened[setting.name] or spelled)
    with pytest.raises(UserError) as error:
        asked.require_opened_as(opened | {setting.name: has}, "the generator", follows=FOLLOWS)
    shown = setting.argument(has) if isinstance(has, bool) else str(has)
    assert str(error.value) == f"{setting.as_flag(spelled)}: the generator has {shown}"


def test_a_limit_is_refused_by_a_generator_that_has_none() -> None:
    asked = parse_args(["--max-graph-mib=64"], Program.CLIENT, family(CASE4))
    with pytest.raises(UserError, match=r"^--max-graph-mib 64: the generator has no limit$"):
        asked.require_opened_as(Config().as_json() | USUAL, "the generator", follows=FOLLOWS)


@pytest.mark.parametrize(("asked", "serves", "has"), [("hf", "case4_fused", "fused"), ("fused", "case4", "hf")])
def test_a_forward_that_was_given_is_told_with_the_generators(asked: str, serves: str, has: str) -> None:
    config = parse_args([f"--forward={asked}"], Program.CLIENT, family(CASE4))
    environment = {"case": serves, "resolved_configuration": Config(forward=has).as_json()}
    case, config = commands._as_asked(CASE4, config)
    with pytest.raises(UserError, match=f"^--forward {asked}: it has {has}$"):
        commands._require_served(environment, "it", config, case)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "it serves None, not case4"),
        ({"case": "case2", "resolved_configuration": {}}, "it serves case2, not case4"),
        ({"case": "case4", "resolved_configuration": [1]}, "it serves case4 of no configuration"),
        ({"case": {}, "resolved_configuration": {}}, "it serves {}, not case4"),
        ({"case": "case4_fused", "resolved_configuration": {}}, "both need the same --forward"),
    ],
    ids=str,
)
def test_a_generator_of_something_else_is_refused(environment: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        commands._require_served(environment, "it", Config(), CASE4)


def test_async_capture_asked_of_a_server_that_has_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.serve(CASE2, ["--async-capture"], background=False) == 2
    assert "--async-capture: this server never captures in the background" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "flags", "measured", "engine"),
    [
        (CASE5, "", CASE5, "tensorrt-llm"),
        (CASE5, "--engine vllm", VLLM, "vllm"),
        (VLLM, "", VLLM, "vllm"),
        (VLLM, "--engine vllm", VLLM, "vllm"),
        (CASE1, "--engine vllm", CASE1, "vllm"),
    ],
)
def test_a_case_by_name_and_its_engine_are_one(case: Case, flags: str, measured: Case, engine: str) -> None:
    config = parse_args(flags.split(), Program.CASE, family(case))
    chosen, config = commands._as_asked(case, config)
    assert (chosen, config.engine) == (measured, engine)


@pytest.mark.parametrize(
    ("case", "flags", "measured"),
    [
        (CASE4, "", CASE4),
        (CASE4, "--forward hf", CASE4),
        (CASE4, "--forward fused", CASE4_FUSED),
        (CASE4_FUSED, "", CASE4_FUSED),
        (CASE4_FUSED, "--forward fused", CASE4_FUSED),
        (CASE1, "--forward hf", CASE1),
    ],
)
def test_a_case_by_name_and_its_forward_are_one(case: Case, flags: str, measured: Case) -> None:
    config = parse_args(flags.split(), Program.GENERATOR, family(case))
    chosen, config = commands._as_asked(case, config)
    assert (chosen, config.forward) == (measured, measured.forward)


@pytest.mark.parametrize(
    ("case", "flag", "told"),
    [
        (VLLM, "--engine tensorrt-llm", "--engine tensorrt-llm: vLLM was asked for by name"),  # also at its default
        (CASE4_FUSED, "--forward hf", "--forward hf: JIT+CUDA fused was asked for by name"),
        (CASE1, "--forward fused", "--forward fused is a variant of Case 4 only, and not of case1_baseline.py"),
        (VLLM, "--forward fused", "--forward fused is a variant of Case 4 only"),
    ],
)
def test_a_flag_that_contradicts_the_case_is_refused(case: Case, flag: str, told: str) -> None:
    config = parse_args(flag.split(), Program.CASE, family(case))
    with pytest.raises(UserError, match=f"^{re.escape(told)}"):
        commands._as_asked(case, config)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a generator of Case 4 that was opened with a flag for nearly everything."""
    directory = tmp_path_factory.mktemp("generator")
    tiny_model("llama-gqa", directory).module.save_pretrained(directory / "model")
    flags = (
        f"--model {directory / 'model'} --load-format auto --dtype float32 --device cpu --seed 5 --max-graphs 20 "
        "--max-graph-mib 4000 --precapture 10,20 --no-async-capture --max-seq-len 100 --ops native"
    )
    socket = directory / "private" / "socket"
    command = [sys.executable, "case4_jit_cuda_generator.py", *flags.split(), "--socket", str(socket)]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRON, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not any(line == "ready\n" for line in process.stdout):
            pytest.fail(f"the generator ended with {process.wait()}")
        yield socket
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--seed 0", "--seed 0: the generator at SOCKET has 5"),
        ("--max-graphs 50", "--max-graphs 50: the generator at SOCKET has 20"),
        ("--load-format dummy", "--load-format dummy: the generator at SOCKET has auto"),
        ("--load-format dummy --max-graphs 50 --seed 0", "--load-format dummy: the generator at SOCKET has auto"),
        ("--async-capture", "--async-capture: the generator at SOCKET has --no-async-capture"),
        ("--precapture 10-500:10", "--precapture 10-500:10: the generator at SOCKET has 10,20"),
        ("--max-seq-len 512", "--max-seq-len 512: the generator at SOCKET has 100"),
        ("--ops torchscript", "--ops torchscript: the generator at SOCKET has native"),
        ("--forward fused", "--forward fused: the generator at SOCKET has hf"),
        ("--model tiny-llama", "--model tiny-llama: the generator at SOCKET has MODEL"),
        ("--device cuda", "--device cuda: the generator at SOCKET has cpu"),
    ],
)
def test_a_client_is_refused_what_its_generator_has_not(generator: Path, tmp_path: Path, flags: str, told: str) -> None:
    run = client(generator, tmp_path, *flags.split())
    told = told.replace("SOCKET", str(generator)).replace("MODEL", str(generator.parent.parent / "model"))
    assert (run.returncode, run.stderr) == (2, f"error: {told}\n")


def test_a_client_may_spell_out_what_its_generator_has(generator: Path, tmp_path: Path) -> None:
    flags = "--seed 5 --max-graphs 20 --load-format auto --device auto --forward hf --precapture 20,10 --ops native"
    model = f"{generator.parent.parent}/./model/"
    run = client(generator, tmp_path, *flags.split(), "--no-async-capture", "--temperature", "0.7", "--model", model)
    assert run.returncode == 0, run.stderr
    recorded = json.loads((tmp_path / "environment.json").read_text())["cases"]["case4_jit_cuda"]["configuration"]
    assert {"seed": 5, "max_graphs": 20, "load_format": "auto"}.items() <= recorded.items()
    assert recorded.keys() == SETTINGS.keys()


def client(socket: Path, output: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    small = ("--prompt-lengths", "10", "--ttft-iterations", "1", "--p99-iterations", "1", "--output-dir", str(output))
    command = [sys.executable, "case4_jit_cuda_client.py", "--socket", str(socket), *small, *flags]
    return subprocess.run(command, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=120)


def test_what_a_program_has_no_use_for_is_named_where_it_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hybridgraph.serving.server.serve", lambda *_, **__: 0)
    assert commands.serve(CASE4, ["--p99-iterations", "100", "--max-graphs", "50", "--prompt-lengths", "9"]) == 0
    assert capsys.readouterr().err == "the generator of JIT+CUDA has no use for --p99-iterations 100\n"
    assert commands.serve(CASE4, []) == 0
    assert capsys.readouterr().err == ""


# --help, and what is loaded for it.


def help_of(*command: str) -> str:
    """What ``--help`` of a command prints, with nothing but the standard library to import."""
    run = subprocess.run(
        [sys.executable, "-S", *command, "--help"], cwd=ROOT, env=ENVIRON, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_wrong_flag_need_the_standard_library_alone(script: str) -> None:
    assert help_of(script).startswith(f"usage: {script} ")
    wrong = subprocess.run(
        [sys.executable, "-S", script, "--wrong"], cwd=ROOT, env=ENVIRON, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr == "error: unrecognized arguments: --wrong (--help lists every flag)\n"


@pytest.mark.parametrize("key", ["case2", "case4"])
def test_help_of_a_pair_needs_the_standard_library_alone(key: str) -> None:
    assert "--socket" not in help_of("-m", "hybridgraph", "pair", key)


@pytest.mark.parametrize(
    ("script", "program", "cases"),
    [
        ("case1_baseline.py", Program.CASE, [CASE1]),
        ("case3_jit_only.py", Program.CASE, [CASES[2]]),
        ("case2_async_cuda_client.py", Program.CLIENT, [CASE2]),
        ("case4_jit_cuda_generator.py", Program.GENERATOR, family(CASE4)),
        ("case5_tensorrt_llm.py", Program.CASE, ENGINES.values()),
    ],
)
def test_help_shows_what_the_case_uses(script: str, program: Program, cases: "list[Case]") -> None:
    shown = re.findall(r"^  (--(?:no-)?[a-z0-9-]+)", help_of(script), flags=re.MULTILINE)
    used = [s for s in SETTINGS.values() if any(s.used_by(program, case) for case in cases)]
    assert shown == [s.argument(not s.default) if isinstance(s.default, bool) else s.flag for s in used]


def test_help_is_in_groups_and_says_what_is_required() -> None:
    shown = help_of("case4_jit_cuda_client.py")
    assert re.findall(r"^(\w+):", shown, flags=re.MULTILINE) == [
        "usage", "options", "model", "protocol", "engine", "generator", "files"
    ]  # fmt: skip
    assert shown.startswith("usage: case4_jit_cuda_client.py --socket PATH [FLAGS]\n")
    assert re.search(r"--socket PATH +the generator's socket \(required\)", shown)
    assert re.search(r"--seed N .*\(default: the\s+generator's\)", shown)
    assert "(required)" not in help_of("case4_jit_cuda_generator.py")
