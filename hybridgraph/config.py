"""Every setting of every entry point, with its owner and one record each.

A function declares the narrowest owner that it can do with; ``Config`` is all of them. What else is said of settings
is derived from the records: flags and ``--help`` (``system/command_line.py``), ranges, what a case has no use for, what
must match a running generator, what ``--resume`` may change, what separates rows, what stands beside a table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hybridgraph.cases import ENGINES, PAPER_PROMPT_LENGTHS, Case, Part
from hybridgraph.contract import MAX_TEMPERATURE, MIN_TEMPERATURE
from hybridgraph.errors import UserError
from hybridgraph.settings import MAX_ITERATIONS, MEASURING, OPENING, Program, Setting, Told, parse_lengths, parse_path

LOAD_FORMATS = ("dummy", "auto")
DTYPES = ("float16", "bfloat16", "float32")
OPS = ("torchscript", "inductor", "native", "fused")
FORWARDS = ("hf", "fused")
WEIGHTS = ("plain", "packed", "auto")
MAX_PAUSE_MS = 60_000
MAX_LAUNCHES = 1000
DEFAULT_MAX_SEQ_LEN = 512

_Value = TypeVar("_Value")

# What several settings have in common.
_count = partial(Setting, metavar="N", parse=int, limits=(0, MAX_ITERATIONS))
_opening = partial(Setting, programs=OPENING, opens=True)
_opening_size = partial(_opening, metavar="N", parse=int, limits=(1, MAX_ITERATIONS))


def _numbered(device: str) -> str:
    return "cuda:0" if device == "cuda" else device


def _setting(default: _Value, record: Setting) -> _Value:
    """A dataclass field that ``record`` describes."""
    described: _Value = field(default=default, metadata={"record": record})
    return described


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all owners share. ``given`` names the settings that somebody asked for; it is no setting itself."""

    GROUP: ClassVar[str]  # of flags, in --help

    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @classmethod
    def of(cls: type[_Owner], **asked: Any) -> _Owner:
        """The settings in which ``asked`` was asked for, and nothing else; raises UserError."""
        return cls(**asked, given=frozenset(asked))

    def __post_init__(self) -> None:
        """Raise UserError for the first value that no run could use."""
        for setting in settings_of(type(self)):
            setting.check(getattr(self, setting.name))

    def asked(self) -> list[Setting]:
        """The settings that somebody asked for, by name."""
        return [SETTINGS[name] for name in sorted(self.given)]

    def unused_by(self, program: Program, case: Case) -> list[str]:
        """What was asked for and changes nothing in ``program`` for ``case``, as it is written on a command line."""
        return [s.as_flag(getattr(self, s.name)) for s in self.asked() if not s.used_by(program, case)]

    def arguments(self, program: Program, case: Case) -> list[str]:
        """What was asked for, as far as ``program`` uses it for ``case``, as a command line."""
        return [s.argument(getattr(self, s.name)) for s in self.asked() if s.used_by(program, case)]

    def as_json(self) -> dict[str, Any]:
        """Every setting as a JSON value."""
        values = {setting.name: getattr(self, setting.name) for setting in settings_of(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


_Owner = TypeVar("_Owner", bound=Settings)
_Opened = TypeVar("_Opened", bound="ModelSettings")


@dataclass(frozen=True, kw_only=True)
class RequestSettings(Settings):
    """What will be asked, as far as a source must be opened ready for it."""

    GROUP = "protocol"

    prompt_lengths: tuple[int, ...] = _setting(
        PAPER_PROMPT_LENGTHS,
        Setting(
            "lengths to measure, such as 10,50,100 or 50-400:50",
            metavar="SPEC",
            parse=parse_lengths,
            programs=OPENING,
            separates="protocol",
        ),
    )
    decode_tokens: int = _setting(0, _count("further tokens a request to measure ITL over (0: none)", programs=OPENING))
    seed: int = _setting(0, _count("seed of weights, prompts and sampling", programs=OPENING, opens=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt_lengths or min(self.prompt_lengths) < 1:
            raise UserError(f"--prompt-lengths {self.prompt_lengths}: a length is 1 or more")

    @property
    def new_tokens(self) -> int:
        """Tokens of the longest answer this run asks for."""
        return 1 + self.decode_tokens

    @property
    def longest_request(self) -> int:
        """Positions the longest request needs, prompt and answer."""
        return max(self.prompt_lengths) + self.new_tokens


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings(RequestSettings):
    """How requests are made, and how many of them."""

    ttft_iterations: int = _setting(5, _count("requests a length for TTFT", separates="protocol"))
    p99_iterations: int = _setting(100, _count("requests a length for P99", separates="protocol"))
    warmup: int = _setting(0, _count("unmeasured requests before the protocol (the paper: 0)", separates="protocol"))
    pause_ms: float = _setting(
        0,
        Setting(
            "rest before every request, in ms (the paper: none)",
            metavar="MS",
            parse=float,
            limits=(0, MAX_PAUSE_MS),
            separates="protocol",
        ),
    )
    temperature: float = _setting(
        0.7,
        Setting(
            "sampling temperature, over the full vocabulary",
            metavar="T",
            parse=float,
            limits=(MIN_TEMPERATURE, MAX_TEMPERATURE),
            advice=" (--greedy takes the likeliest)",
            separates="sampling",
        ),
    )
    greedy: bool = _setting(False, Setting("take the likeliest token instead of sampling", separates="sampling"))
    prompt_file: str | None = _setting(
        None,
        Setting(
            "text to cut the prompts from (needs real weights)", unset="random ids", metavar="PATH", parse=parse_path
        ),
    )

    @property
    def request_temperature(self) -> float:
        """The temperature every request carries: 0 is greedy."""
        return 0.0 if self.greedy else self.temperature


@dataclass(frozen=True, kw_only=True)
class ModelSettings(RequestSettings):
    """Which model, on which device, with how many positions. ``None`` follows the device, and is printed."""

    GROUP = "model"

    model: str | None = _setting(
        None,
        _opening(
            "hub id, local directory, or a built-in shape: llama-2-7b, tiny-llama",
            unset="follows the device",
            parse=parse_path,
            separates="model",
            meaning=lambda name: name and os.path.normpath(name),
        ),
    )
    load_format: str = _setting(
        "dummy",
        _opening(
            "dummy: seeded random weights of the real shape; auto: real ones",
            choices=LOAD_FORMATS,
            separates="load_format",
        ),
    )
    dtype: str | None = _setting(
        None,
        _opening("precision", unset="float16 on a GPU, float32 on the CPU", choices=DTYPES, separates="dtype"),
    )
    device: str = _setting("auto", _opening("auto, cpu, cuda or cuda:N", separates="device", meaning=_numbered))
    max_seq_len: int | None = _setting(
        None,
        _opening_size(
            "positions of the KV cache", unset="512, more when asked lengths need it", told=Told.WHERE_DIFFERENT
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,4})?", self.device):
            raise UserError(f"--device {self.device}: one of auto, cpu, cuda, cuda:N")

    @property
    def positions(self) -> int:
        """Positions the KV cache is given: as asked, otherwise 512 or what the requests need, in steps of 64."""
        return self.max_seq_len or max(DEFAULT_MAX_SEQ_LEN, -(-self.longest_request // 64) * 64)

    def fitted(self: _Opened, limit: int, model: str) -> _Opened:
        """The same with positions that ``model``, which has ``limit``, can be given; raises UserError for more."""
        if (needed := self.max_seq_len or self.longest_request) > limit:
            raise UserError(f"{needed} positions exceed the {limit} of {model}")
        return replace(self, max_seq_len=min(self.positions, limit))


@dataclass(frozen=True, kw_only=True)
class EngineSettings(ModelSettings):
    """What a source is opened with. ``None`` follows the case."""

    GROUP = "engine"

    ops: str | None = _setting(
        None,
        _opening("dynamic operations", unset="the case's own", choices=OPS, part=Part.OPS, told=Told.BY_ROWS),
    )
    forward: str = _setting(
        "hf",
        _opening(
            "Hugging Face's own forward, or the fused one over the same weights",
            choices=FORWARDS,
            part=Part.FORWARDS,
            programs=OPENING - {Program.STUDY},
            told=Told.BY_ROWS,
        ),
    )
    weights: str = _setting(
        "plain",
        _opening(
            "what the fused forward reads: plain: 16 bits a weight; packed: 12, without loss, beside the plain ones; "
            "auto: packed where that is possible and pays",
            choices=WEIGHTS,
            part=Part.FUSED,
            told=Told.BY_ROWS,
        ),
    )
    max_graphs: int = _setting(50, _opening_size("graphs the rolling pool holds", part=Part.GRAPHS))
    max_graph_mib: int | None = _setting(
        None,
        _opening_size(
            "MiB that the pool's graphs may take, beside their shared memory", unset="no limit", part=Part.GRAPHS
        ),
    )
    precapture: str | None = _setting(
        None,
        _opening(
            "lengths captured before serving: 1-50, 10-500:10 or 10,20,64",
            unset="the case's own",
            metavar="SPEC",
            part=Part.GRAPHS,
            meaning=lambda spec: spec and sorted(parse_lengths(spec)),
        ),
    )
    async_capture: bool = _setting(
        True, _opening("capture further graphs in the background while serving", part=Part.GRAPHS)
    )
    engine: str = _setting(
        "tensorrt-llm",
        _opening(
            "the engine of Case 5, or a peer in its place",
            choices=tuple(ENGINES),
            part=Part.ENGINES,
            programs=frozenset({Program.CASE}),
            told=Told.BY_ROWS,
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precapture is not None and (num := len(parse_lengths(self.precapture))) > self.max_graphs:
            raise UserError(f"--precapture {self.precapture}: {num} lengths for --max-graphs {self.max_graphs}")


@dataclass(frozen=True, kw_only=True)
class ServingSettings(Settings):
    """Where a generator listens, and what it shares with its client."""

    GROUP = "generator"

    socket: str | None = _setting(
        None,
        Setting(
            "the generator's socket",
            unset="in a fresh private directory",
            metavar="PATH",
            parse=parse_path,
            part=Part.GRAPHS,
            programs=frozenset({Program.CLIENT, Program.GENERATOR}),
            needed_by=frozenset({Program.CLIENT}),
            told=Told.NOWHERE,
        ),
    )
    share_buffers: bool = _setting(
        False,
        Setting("run the dynamic operations in the client, on buffers the generator shares", part=Part.GRAPHS),
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Where the results of a run go, and how they are told."""

    GROUP = "files"

    output_dir: str = _setting(
        "output",
        Setting(
            "where results go",
            metavar="DIR",
            parse=parse_path,
            told=Told.NOWHERE,
        ),
    )
    resume: bool = _setting(
        False, Setting("finish an interrupted run: nothing measured is measured again", told=Told.NOWHERE)
    )
    launch: int = _setting(
        1,
        Setting(
            "which start of the case's processes this is: from the second on, it adds to the run that is there",
            metavar="K",
            parse=int,
            limits=(1, MAX_LAUNCHES),
            programs=MEASURING - {Program.STUDY},
            told=Told.NOWHERE,
        ),
    )
    json: bool = _setting(
        False,
        Setting(
            "the last line of standard output is one JSON document of the results",
            told=Told.NOWHERE,
        ),
    )

    @property
    def output_path(self) -> Path:
        return Path(self.output_dir)

    @property
    def continues(self) -> bool:
        """Whether this adds to the run that is there, where there is one."""
        return self.resume or self.launch > 1


@dataclass(frozen=True, kw_only=True)
class Config(ProtocolSettings, EngineSettings, ServingSettings, RunSettings):
    """Every setting of a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_file is not None and self.load_format != "auto":
            raise UserError("--prompt-file needs a tokenizer and real weights: add --load-format auto")

    def check_requests(self) -> None:
        """Raise UserError where there is nothing to measure, or no positions for what there is."""
        if not (self.ttft_iterations or self.p99_iterations or self.decode_tokens):
            raise UserError("nothing to measure: --ttft-iterations, --p99-iterations and --decode-tokens are all 0")
        if self.max_seq_len is not None and self.longest_request > self.max_seq_len:
            raise UserError(
                f"--max-seq-len {self.max_seq_len} is less than the longest request: "
                f"{max(self.prompt_lengths)} prompt ids and {self.new_tokens} new ones"
            )

    def opened_as(self, served: Mapping[str, Any]) -> Config:
        """The same requests to a source that was opened with ``served``."""
        opening = [setting.name for setting in SETTINGS.values() if setting.opens]
        return replace(self, **{name: served[name] for name in opening if name in served})

    def require_opened_as(self, served: Mapping[str, Any], by: str, *, follows: Mapping[str, Any]) -> None:
        """Raise UserError where another opening was asked for than ``by``, opened with ``served``, has.

        ``follows``: what a default that follows the device or the case means to it.
        """
        try:
            opened = self.opened_as(served)
        except UserError as error:
            raise UserError(f"{by} tells no configuration of a generator: {error}") from None
        for setting in self.asked():
            asked, has = (_resolved(setting, getattr(settings, setting.name), follows) for settings in (self, opened))
            if setting.opens and setting.meaning(asked) != setting.meaning(has):
                shown = setting.as_flag(has) if isinstance(has, bool) else setting.unset if has is None else has
                raise UserError(f"{setting.as_flag(getattr(self, setting.name))}: {by} has {shown}")


def _resolved(setting: Setting, value: Any, follows: Mapping[str, Any]) -> Any:
    return follows.get(setting.name, value) if value == setting.default else value


OWNERS: tuple[type[Settings], ...] = (
    ModelSettings, RequestSettings, ProtocolSettings, EngineSettings, ServingSettings, RunSettings,
)  # fmt: skip


def settings_of(owner: type[Settings]) -> tuple[Setting, ...]:
    """The settings that ``owner`` has, of its own and from those that it builds on."""
    records = [(each, each.metadata["record"]) for each in fields(owner) if "record" in each.metadata]
    return tuple(replace(record, name=each.name, default=each.default) for each, record in records)


def own_settings_of(owner: type[Settings]) -> tuple[Setting, ...]:
    """The settings that ``owner`` alone has brought."""
    return tuple(setting for setting in settings_of(owner) if setting.name in vars(owner))


SETTINGS: dict[str, Setting] = {setting.name: setting for owner in OWNERS for setting in own_settings_of(owner)}


def separating(settings: Iterable[Setting]) -> tuple[str, ...]:
    """The columns of rows that ``settings`` decide, and in which rows must agree to share a table."""
    return tuple(dict.fromkeys(setting.separates for setting in settings if setting.separates))
