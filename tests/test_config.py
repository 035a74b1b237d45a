"""The command line means what the dataclass says, and nothing else."""

import pytest

from hybridgraph.cases import CASE1, CASE3, CASE4, CASE5, PAPER_PROMPT_LENGTHS, Case
from hybridgraph.config import Config, as_flag, flag_of, parse_args, parse_lengths
from hybridgraph.errors import UserError


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("5", (5,)), ("1-4", (1, 2, 3, 4)), ("10-50:20", (10, 30, 50)), ("3,1-2,3", (3, 1, 2)), ("10-45:20", (10, 30))],
)
def test_lengths(text: str, lengths: tuple[int, ...]) -> None:
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize("text", ["", "0", "-5", "a", "5-1", "1-10:0", "1,,2", "1.5", "9999999999"])
def test_lengths_that_mean_nothing(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_lengths(text)
    assert "\n" not in str(error.value)


def test_defaults_are_the_papers() -> None:
    config = parse_args([], description="")
    assert config.prompt_lengths == PAPER_PROMPT_LENGTHS
    assert (config.ttft_iterations, config.p99_iterations, config.warmup, config.decode_tokens) == (5, 100, 0, 0)
    assert config.request_temperature == 0.7
    assert config.positions == 512


def test_flags_reach_their_fields() -> None:
    argv = "--model x --dtype bfloat16 --prompt-lengths 1-3 --greedy --no-async-capture --share-buffers --seed 7"
    config = parse_args(argv.split(), description="")
    assert config == Config(
        model="x",
        dtype="bfloat16",
        prompt_lengths=(1, 2, 3),
        greedy=True,
        async_capture=False,
        share_buffers=True,
        seed=7,
    )
    assert config.request_temperature == 0.0


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
    ],
)
def test_mistakes_are_told_with_their_value(argv: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        parse_args(argv.split(), description="")
    assert "\n" not in str(error.value)


def test_positions_grow_with_what_is_asked() -> None:
    assert Config(prompt_lengths=(600,), decode_tokens=10).positions == 640
    assert Config(prompt_lengths=(10,), max_seq_len=128).positions == 128


def test_positions_are_what_the_model_has_room_for() -> None:
    assert Config(prompt_lengths=(250,)).fitted(256, "m").positions == 256
    assert Config(max_seq_len=300, prompt_lengths=(10,)).fitted(4096, "m").positions == 300
    for config in (Config(prompt_lengths=(256,)), Config(prompt_lengths=(10,), max_seq_len=257)):
        with pytest.raises(UserError, match="257 positions exceed the 256 of m"):
            config.fitted(256, "m")


def test_what_a_source_was_opened_with_is_what_is_recorded() -> None:
    served = Config(model="m", dtype="float16", load_format="auto", max_graphs=7).as_json()
    asked = Config(dtype="float16", greedy=True)
    asked.require_opened_as(served, "it")
    assert asked.opened_as(served) == Config(model="m", dtype="float16", load_format="auto", max_graphs=7, greedy=True)
    with pytest.raises(UserError, match="--dtype bfloat16: it has float16"):
        Config(dtype="bfloat16").require_opened_as(served, "it")
    with pytest.raises(UserError, match="--load-format auto: it has dummy"):
        Config(load_format="auto").require_opened_as(served | {"load_format": "dummy"}, "it")
    with pytest.raises(UserError, match="--seed 3: it has 0"):
        Config(seed=3).require_opened_as(served, "it")
    with pytest.raises(UserError, match="--no-async-capture: it has True"):
        Config(async_capture=False).require_opened_as(served, "it")
    assert asked.opened_as({}) == asked


@pytest.mark.parametrize("asked", ["9,4", "4,9", "4-9:5", "9,4,9"])
def test_lengths_to_capture_are_compared_by_what_they_mean(asked: str) -> None:
    Config(precapture=asked).require_opened_as(Config(precapture="9,4").as_json(), "it")
    for served, has in ((Config(precapture="4,10"), "4,10"), (Config(), "None")):
        with pytest.raises(UserError, match=f"--precapture {asked}: it has {has}"):
            Config(precapture=asked).require_opened_as(served.as_json(), "it")


def test_a_flag_is_spelled_as_it_is_parsed() -> None:
    assert flag_of("max_seq_len") == "--max-seq-len"
    assert as_flag("share_buffers", True) == "--share-buffers"
    assert as_flag("async_capture", False) == "--no-async-capture"
    assert as_flag("prompt_file", "my text.txt") == "--prompt-file 'my text.txt'"


@pytest.mark.parametrize(
    ("case", "unused"),
    [
        (CASE1, ["--no-async-capture", "--engine vllm", "--max-graphs 3", "--ops native"]),
        (CASE3, ["--no-async-capture", "--engine vllm", "--max-graphs 3"]),
        (CASE4, ["--engine vllm"]),
        (CASE5, ["--no-async-capture", "--max-graphs 3", "--ops native"]),
    ],
)
def test_what_a_case_has_no_use_for(case: Case, unused: list[str]) -> None:
    assert Config().unused_by(case) == []
    asked = Config(max_graphs=3, ops="native", engine="vllm", async_capture=False, decode_tokens=4)
    assert asked.unused_by(case) == unused


def test_names_of_any_script_are_taken() -> None:
    assert Config(output_dir="größe/結果").output_path.name == "結果"


def test_a_generator_is_told_what_to_be_ready_for_not_what_to_measure() -> None:
    assert parse_args(["--max-seq-len", "64"], description="", measures=False).positions == 64
