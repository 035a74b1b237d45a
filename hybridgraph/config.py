"""Every setting of every entry point: one frozen dataclass, and the command line derived from it."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from hybridgraph.cases import ENGINES, PAPER_PROMPT_LENGTHS, Case
from hybridgraph.contract import MAX_TEMPERATURE, MIN_TEMPERATURE
from hybridgraph.errors import UserError
from hybridgraph.places import require_own

LOAD_FORMATS = ("dummy", "auto")
DTYPES = ("float16", "bfloat16", "float32")
OPS = ("torchscript", "inductor", "native", "fused")
FORWARDS = ("hf", "fused")
MAX_ITERATIONS = 1_000_000  # a raw sample is about 1 KiB in memory: beyond this a run could not hold its own
MAX_PAUSE_MS = 60_000
DEFAULT_MAX_SEQ_LEN = 512
# What a source is opened with; everything else is about the requests.
OPENING = (
    "model", "load_format", "dtype", "device", "seed", "ops", "forward",
    "max_graphs", "max_graph_mib", "precapture", "async_capture", "max_seq_len",
)  # fmt: skip
# The least and the most that a setting can be.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("ttft_iterations", "p99_iterations", "decode_tokens", "warmup", "seed"), (0, MAX_ITERATIONS)),
    **dict.fromkeys(("max_graphs", "max_graph_mib", "max_seq_len"), (1, MAX_ITERATIONS)),
    "pause_ms": (0, MAX_PAUSE_MS),
    "temperature": (MIN_TEMPERATURE, MAX_TEMPERATURE),
}


def _setting(default: Any, help_text: str, **arguments: Any) -> Any:
    """A field with the arguments of its command-line flag."""
    return field(default=default, metadata={"help": help_text, **arguments})


def parse_lengths(text: str) -> tuple[int, ...]:
    """``"1-50"`` (a range), ``"10-500:10"`` (a step range) or ``"10,20,64"`` (a list); ends included."""
    lengths: list[int] = []
    for part in text.split(","):
        span, _, step = part.strip().partition(":")
        first, dash, last = span.partition("-")
        try:
            low = int(first)
            high, stride = (int(last) if dash else low), (int(step) if step else 1)
        except ValueError:
            raise UserError(f"'{text}' is no list of lengths: write 1-50, 10-500:10 or 10,20,64") from None
        if low < 1 or high < low or stride < 1:
            whole = f" in '{text}'" if part.strip() != text else ""
            raise UserError(f"'{part.strip()}'{whole} is no range of lengths: they start at 1 and ascend")
        if high > MAX_ITERATIONS:
            raise UserError(f"length {high} in '{text}' is beyond any model's positions")
        lengths += range(low, high + 1, stride)
    return tuple(dict.fromkeys(lengths))


def flag_of(name: str) -> str:
    """How the setting ``name`` is spelled on a command line."""
    return "--" + name.replace("_", "-")


def as_flag(name: str, value: Any) -> str:
    """The setting ``name`` and its value as they are written on a command line."""
    if isinstance(value, bool):
        return flag_of(name if value else f"no_{name}")
    return f"{flag_of(name)} {shlex.quote(str(value))}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of one run. ``None`` means: follows the device or the case, and is printed."""

    model: str | None = _setting(
        None, "hub id, local directory, or a built-in shape: llama-2-7b, tiny-llama (default follows the device)"
    )
    load_format: str = _setting(
        "dummy", "dummy: seeded random weights of the real shape; auto: real ones", choices=LOAD_FORMATS
    )
    dtype: str | None = _setting(None, "precision (default: float16 on a GPU, float32 on the CPU)", choices=DTYPES)
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N")
    prompt_lengths: tuple[int, ...] = _setting(
        PAPER_PROMPT_LENGTHS, "lengths to measure, such as 10,50,100 or 50-400:50", type=parse_lengths, metavar="SPEC"
    )
    ttft_iterations: int = _setting(5, "requests a length for TTFT", type=int, metavar="N")
    p99_iterations: int = _setting(100, "requests a length for P99", type=int, metavar="N")
    decode_tokens: int = _setting(0, "further tokens a request to measure ITL over (0: none)", type=int, metavar="N")
    warmup: int = _setting(0, "unmeasured requests before the protocol (the paper: 0)", type=int, metavar="N")
    pause_ms: float = _setting(0, "rest before every request, in ms (the paper: none)", type=float, metavar="MS")
    temperature: float = _setting(0.7, "sampling temperature, over the full vocabulary", type=float, metavar="T")
    greedy: bool = _setting(False, "take the likeliest token instead of sampling")
    seed: int = _setting(0, "seed of weights, prompts and sampling", type=int, metavar="N")
    max_seq_len: int | None = _setting(
        None, "positions of the KV cache (default: 512, more when asked lengths need it)", type=int, metavar="N"
    )
    prompt_file: str | None = _setting(None, "text to cut the prompts from (needs real weights)", metavar="PATH")
    output_dir: str = _setting("output", "where results go", metavar="DIR")
    resume: bool = _setting(False, "finish an interrupted run: nothing measured is measured again")
    json: bool = _setting(False, "the last line of standard output is one JSON document of the results")
    ops: str | None = _setting(None, "dynamic operations (default: the case's own)", choices=OPS)
    forward: str = _setting(
        "hf", "Case 4's forward: Hugging Face's own, or the fused one over the same weights", choices=FORWARDS
    )
    max_graphs: int = _setting(50, "graphs the rolling pool holds", type=int, metavar="N")
    max_graph_mib: int | None = _setting(
        None,
        "MiB that the pool's graphs may take, beside their shared memory (default: no limit)",
        type=int,
        metavar="N",
    )
    precapture: str | None = _setting(
        None, "lengths captured before serving: 1-50, 10-500:10 or 10,20,64 (default: the case's)", metavar="SPEC"
    )
    async_capture: bool = _setting(True, "capture further graphs in the background while serving")
    share_buffers: bool = _setting(
        False, "the client runs the dynamic operations itself, on buffers the generator shares"
    )
    socket: str | None = _setting(None, "the generator's socket (default: a fresh private directory)", metavar="PATH")
    engine: str = _setting(
        "tensorrt-llm",
        "Case 5's engine, or a peer in its place",
        choices=tuple(ENGINES),
    )

    def __post_init__(self) -> None:
        """Raise UserError for the first value that no run could use."""
        for name in ("model", "prompt_file", "output_dir", "socket"):
            _check_text(name, getattr(self, name))
        if not self.prompt_lengths or min(self.prompt_lengths) < 1:
            raise UserError(f"--prompt-lengths {self.prompt_lengths}: a length is 1 or more")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                hint = " (--greedy takes the likeliest)" if name == "temperature" else ""
                raise UserError(f"{flag_of(name)} {value}: from {least} to {most}{hint}")
        if self.prompt_file is not None and self.load_format != "auto":
            raise UserError("--prompt-file needs a tokenizer and real weights: add --load-format auto")
        if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,4})?", self.device):
            raise UserError(f"--device {self.device}: one of auto, cpu, cuda, cuda:N")
        if self.precapture is not None and (num := len(parse_lengths(self.precapture))) > self.max_graphs:
            raise UserError(f"--precapture {self.precapture}: {num} lengths for --max-graphs {self.max_graphs}")

    def check_requests(self) -> None:
        """Raise UserError where there is nothing to measure, or no positions for what there is."""
        if not (self.ttft_iterations or self.p99_iterations or self.decode_tokens):
            raise UserError("nothing to measure: --ttft-iterations, --p99-iterations and --decode-tokens are all 0")
        if self.max_seq_len is not None and self.longest_request > self.max_seq_len:
            raise UserError(
                f"--max-seq-len {self.max_seq_len} is less than the longest request: "
                f"{max(self.prompt_lengths)} prompt ids and {self.new_tokens} new ones"
            )

    @property
    def new_tokens(self) -> int:
        """Tokens of the longest answer this run asks for."""
        return 1 + self.decode_tokens

    @property
    def longest_request(self) -> int:
        """Positions the longest request needs, prompt and answer."""
        return max(self.prompt_lengths) + self.new_tokens

    @property
    def positions(self) -> int:
        """Positions the KV cache is given: as asked, otherwise 512 or what the requests need, in steps of 64."""
        return self.max_seq_len or max(DEFAULT_MAX_SEQ_LEN, -(-self.longest_request // 64) * 64)

    def fitted(self, limit: int, model: str) -> Config:
        """The same with positions that ``model``, which has ``limit``, can be given; raises UserError for more."""
        if (needed := self.max_seq_len or self.longest_request) > limit:
            raise UserError(f"{needed} positions exceed the {limit} of {model}")
        return replace(self, max_seq_len=min(self.positions, limit))

    def require_opened_as(self, served: Mapping[str, Any], by: str) -> None:
        """Raise UserError where another opening was asked for than ``by``, opened with ``served``, has."""
        for name in OPENING:
            asked = getattr(self, name)
            if asked != getattr(Config, name) and not _same(name, asked, served.get(name, asked)):
                raise UserError(f"{as_flag(name, asked)}: {by} has {served[name]}")

    def opened_as(self, served: Mapping[str, Any]) -> Config:
        """The same requests to a source that was opened with ``served``."""
        return replace(self, **{name: served[name] for name in OPENING if name in served})

    def unused_by(self, case: Case) -> list[str]:
        """What was asked for and means nothing to ``case``, as it is written on a command line."""
        names = [name for name in sorted(case.unused) if getattr(self, name) != getattr(Config, name)]
        return [as_flag(name, getattr(self, name)) for name in names]

    @property
    def request_temperature(self) -> float:
        """The temperature every request carries: 0 is greedy."""
        return 0.0 if self.greedy else self.temperature

    @property
    def output_path(self) -> Path:
        return Path(self.output_dir)

    def as_json(self) -> dict[str, Any]:
        """Every resolved setting as JSON values."""
        return asdict(self) | {"prompt_lengths": list(self.prompt_lengths)}


def _check_text(name: str, value: str | None) -> None:
    if value == "":
        raise UserError(f"{flag_of(name)} is empty")
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise UserError(f"{flag_of(name)} {value!a}: a name that is no UTF-8 cannot be recorded") from None


def _same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting mean the same: of lengths to capture, neither spelling nor order counts."""
    if name == "precapture" and one and other:
        return set(parse_lengths(one)) == set(parse_lengths(other))
    return bool(one == other)


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are UserError, and whose description is shown as it was written."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists every flag)")


def _add_flag(parser: Parser, setting: Field[Any]) -> None:
    name, default, arguments = setting.name, setting.default, dict(setting.metadata)
    if isinstance(default, bool):
        # The flag says the opposite of the default, so that one word changes it.
        help_text = f"do not {arguments['help']}" if default else arguments["help"]
        action = "store_false" if default else "store_true"
        parser.add_argument(as_flag(name, not default), dest=name, action=action, help=help_text)
        return
    if default is not None and name != "prompt_lengths":
        arguments["help"] += f" (default: {default})"
    parser.add_argument(flag_of(name), dest=name, default=default, **arguments)


def parse_args(
    argv: Sequence[str] | None, *, description: str | None = None, measures: bool = True, without: Sequence[str] = ()
) -> Config:
    """The configuration that a command line asks for; raises UserError for anything it cannot mean.

    ``measures``: whether its requests will be made here; a generator is told only what to be ready for.
    ``without``: the settings that are not its user's to choose.
    """
    for name in without:
        if any(argument.partition("=")[0] == flag_of(name) for argument in argv or ()):
            raise UserError(f"{flag_of(name)}: this script chooses it itself")
    parser = Parser(description)
    for setting in fields(Config):
        if setting.name not in without:
            _add_flag(parser, setting)
    config = Config(**vars(parser.parse_args(argv)))
    require_own(config.output_path)
    if measures:
        config.check_requests()
    return config
