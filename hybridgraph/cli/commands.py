"""The entry points behind the scripts: parse, build, run, close. Every mistake of a user's ends in one line here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hybridgraph.bench.directory import held_by_case
from hybridgraph.bench.environment import record_not_run, run_id_of, why_ended
from hybridgraph.bench.store import ResultFiles
from hybridgraph.cases import ENGINES, Case, Part, family, variant
from hybridgraph.cli import flags
from hybridgraph.config import Config, EngineSettings, ModelSettings, ProtocolSettings, ServingSettings, Settings
from hybridgraph.errors import UserError
from hybridgraph.machine.threads import wait_passively_on_cpu
from hybridgraph.settings import Program
from hybridgraph.system.caches import keep_compiler_caches_private
from hybridgraph.system.command_line import parse_args
from hybridgraph.system.console import IMPORTING, OutputLost, explained, guarded, printing, progress_bars, say
from hybridgraph.system.signals import stop_signals_raise, told_to_stop
from hybridgraph.system.surroundings import require_docstrings

if TYPE_CHECKING:
    from hybridgraph.contract import TokenSource
    from hybridgraph.engine.engine import HybridEngine
    from hybridgraph.serving.client import GeneratorClient
    from hybridgraph.serving.shared_client import SharedBufferClient

# torch is imported inside the functions below: a wrong flag is told at once, and a socket exists before a model does.

MAIN = str(Path(__file__).resolve().parents[1] / "__main__.py")
INTERRUPTED = "interrupted: every finished row is on disk; --resume goes on from there"


def _description() -> str | None:
    """The docstring of the script that was started: ``--help`` shows what its case holds fixed and varies."""
    return sys.modules["__main__"].__doc__


@guarded(interrupted=INTERRUPTED)
def run_case(case: Case, argv: Sequence[str] | None = None) -> int:
    """Measure a case of one process, in this one or in one of its engine's environment; returns the exit code."""
    config = parse_args(argv, Program.CASE, family(case), description=_description())
    case, config = _as_asked(case, config)
    from hybridgraph.sources.registry import measures_here, run_in_child

    if here := measures_here(case):
        _say_unused(case, config, Program.CASE)
    with stop_signals_raise(), _reason_recorded(config, case):
        if not here:
            return run_in_child(config, case)  # which is started with the same flags
        with closing(_opened(config, case)) as source:
            _measure(source, config, case)
    return 0


def _as_asked(case: Case, config: Config) -> tuple[Case, Config]:
    """The case that flags make of ``case``, and the settings with its forward and engine, whoever chose them."""
    chosen = (setting.name for setting in config.asked() if setting.part in (Part.FORWARDS, Part.ENGINES))
    case = variant(case, **{name: getattr(config, name) for name in chosen})
    engine = next((name for name, each in ENGINES.items() if each == case), config.engine)
    return case, replace(config, forward=case.forward or config.forward, engine=engine)


def _say_unused(case: Case, config: Settings, program: Program) -> None:
    """Say which flags change nothing for ``case``, and are ignored."""
    if unused := config.unused_by(program, case):
        who = f"the generator of {case.title}" if program is Program.GENERATOR else case.title
        say(f"{who} has no use for {', '.join(unused)}")


def prepare(config: ModelSettings) -> None:
    """Make this process, and those that it starts, fit to import torch; raises UserError where they cannot be."""
    require_docstrings()
    keep_compiler_caches_private()
    wait_passively_on_cpu(config.device)


def _opened(config: EngineSettings, case: Case) -> TokenSource:
    from hybridgraph.sources.registry import open_source
    from hybridgraph.sources.supervised import is_child

    with progress_bars(ticking=True, shown=not is_child()) as bars:  # an engine's own messages would tear them apart
        bars(IMPORTING, 0, 1)
        return open_source(config, case, bars)


@guarded(interrupted=INTERRUPTED)
def serve(case: Case, argv: Sequence[str] | None = None, *, background: bool = True) -> int:
    """Serve a case's engine on a socket until SIGTERM or Ctrl-C; returns the exit code."""
    config = parse_args(argv, Program.GENERATOR, family(case), description=_description())
    if not background:
        config = _without_background(config, case)
    case, config = _as_asked(case, config)
    _say_unused(case, config, Program.GENERATOR)
    prepare(config)
    from hybridgraph.serving.server import serve as serve_engine

    def open_with_progress(tell: Callable[[str, int, int], None]) -> HybridEngine:
        # Whoever reads our output is a client of this very run, and shows the progress that it is told.
        with progress_bars(ticking=True, shown=sys.stdout is not None and sys.stdout.isatty()) as bars:

            def both(stage: str, done: int, total: int) -> None:
                bars(stage, done, total)
                tell(stage, done, total)

            both(IMPORTING, 0, 1)
            from hybridgraph.sources.build import open_engine

            return open_engine(config, case, both)

    return serve_engine(
        Path(config.socket) if config.socket else None,
        open_with_progress,
        on_listening=lambda path: _announce(f"listening {path}"),
        on_ready=lambda: _announce("ready"),
    )


def _without_background(config: Config, case: Case) -> Config:
    """The same for a server that never captures in the background; raises UserError where that was asked for."""
    if "async_capture" in config.given and config.async_capture:
        raise UserError(f"--async-capture: this server never captures in the background; {case.generator} does")
    return replace(config, async_capture=False)


def _announce(state: str) -> None:
    with printing():
        print(state)


@guarded(interrupted=INTERRUPTED)
def run_client(case: Case, argv: Sequence[str] | None = None) -> int:
    """Measure a running generator; returns the exit code."""
    config = parse_args(argv, Program.CLIENT, family(case), description=_description())
    case, config = _as_asked(case, config)
    _say_unused(case, config, Program.CLIENT)
    if config.socket is None:
        raise UserError(f"--socket is missing: start a generator with: python {case.generator} --socket PATH")
    with _reason_recorded(config, case):
        _measure_generator(Path(config.socket), config, case)
    return 0


@guarded(interrupted=INTERRUPTED)
def run_pair(case: Case, argv: Sequence[str]) -> int:
    """Start a case's generator, measure it from this process, and stop what was started."""
    case, config = _as_asked(case, flags.pair(case, argv))
    _say_unused(case, config, Program.PAIR)
    from hybridgraph.serving.pair import generator_process

    with stop_signals_raise(), _reason_recorded(config, case):
        say(f"starting {case.generator}")
        own = config.arguments(Program.GENERATOR, case)
        with generator_process(case.generator, [MAIN, "serve", case.key, *own]) as path:
            _measure_generator(path, config, case)
    return 0


def _measure(source: TokenSource, config: Config, case: Case) -> None:
    from hybridgraph.bench.run import measure
    from hybridgraph.bench.summary import print_summary

    prompts = None
    if config.prompt_file is not None:
        from hybridgraph.sources.prompt_file import text_prompts

        prompts = text_prompts(config, source.info.model, source.info.vocab_size)
    results = measure(source, config, case, prompts)
    with printing():
        print_summary(case, results, source.stats(), as_json=config.json)


def _measure_generator(path: Path, config: Config, case: Case) -> None:
    with progress_bars(ticking=True) as bars:
        client = _client_class(config).connect(
            path,
            script=case.generator,
            on_progress=bars,
            on_queued=refuse_to_wait,
        )
    with closing(client):
        _require_served(client.info.environment, f"the generator at {path}", config, case)
        _measure(client, config, case)


def _require_served(environment: Mapping[str, Any], generator: str, config: Config, case: Case) -> None:
    """Raise UserError where ``generator``, which tells its ``environment``, is not what ``config`` asks for."""
    served, opened = environment.get("case"), environment.get("resolved_configuration")
    if served not in [each.key for each in family(case)]:
        raise UserError(f"{generator} serves {served}, not {case.key}")
    if not isinstance(opened, dict):
        raise UserError(f"{generator} serves {served} of no configuration")
    follows = {"device": environment.get("auto_device"), "precapture": case.precapture}
    config.require_opened_as(opened, generator, follows=follows)
    if served != case.key:
        raise UserError(f"{generator} serves {served}, not {case.key}: both need the same --forward")


def refuse_to_wait(ahead: int) -> NoReturn:
    """Raise UserError: a request that waits for another client's would count that as its own latency."""
    raise UserError(f"the generator answers others, whose requests are ahead ({ahead}): measure it alone")


def _client_class(config: ServingSettings) -> type[GeneratorClient] | type[SharedBufferClient]:
    if config.share_buffers:
        from hybridgraph.serving.shared_client import SharedBufferClient

        return SharedBufferClient
    from hybridgraph.serving.client import GeneratorClient

    return GeneratorClient


@contextmanager
def _reason_recorded(config: Config, case: Case) -> Iterator[None]:
    """Where a case cannot run, its column in the tables says why. What needs no model to be told is told first.

    Until the block ends this process, with what it starts, is alone in writing the case's files.
    """
    files = ResultFiles(config.output_path, case.name)
    with held_by_case(files.directory), files.held():
        earlier = run_id_of(files.directory, files.name)  # fails now rather than after the measurement
        try:
            require_prompt_file(config)
            prepare(config)
            yield
        except OutputLost:
            raise  # the case ran, and its rows are on disk
        except Exception as error:
            if not told_to_stop() and (reason := explained(error)) is not None:
                with suppress(UserError):  # where nothing can be written, the error itself is all that a user needs
                    _record_reason(reason, files, earlier, resumed=config.continues)
            raise


def require_prompt_file(config: ProtocolSettings) -> None:
    """Raise UserError where the file to cut prompts from cannot be read."""
    if config.prompt_file is not None:
        from hybridgraph.sources.prompt_file import read_text

        read_text(config.prompt_file)


def _record_reason(reason: str, files: ResultFiles, earlier: str, *, resumed: bool) -> None:
    """Of a run that this attempt began or took up, why it has no more rows; else why there are none.

    An attempt that did neither leaves the rows of earlier runs, and what is told of them, as they were.
    ``earlier``: the run that was recorded before the attempt.
    """
    directory, name = files.directory, files.name
    taken_up = resumed and files.samples_path() is not None
    if taken_up and why_ended(directory, name) is not None:
        return  # it came to no new row: how the run ended before still stands
    latest = run_id_of(directory, name)
    begun = latest != earlier
    if taken_up or begun or not files.exist():
        record_not_run(directory, name, reason, run_id=latest if taken_up or begun else "")
