"""The entry points behind the scripts: parse, build, run, close. Every mistake of a user's ends in one line here.

python -m hybridgraph pair case4 --decode-tokens 64    # generator and client of one case
python -m hybridgraph new-run --output-dir output                # sets aside what lies there
python -m hybridgraph not-run case5_tensorrt_llm REASON --output-dir output
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hybridgraph.bench.environment import record_not_run, run_id_of, why_ended
from hybridgraph.bench.store import ResultFiles, set_all_aside
from hybridgraph.cases import CASE2, CASE4, CASE4_FUSED, Case, variant
from hybridgraph.config import Config, parse_args
from hybridgraph.errors import UserError, one_line
from hybridgraph.system.console import IMPORTING, OutputLost, guarded, printing, progress_bars, say
from hybridgraph.system.signals import stop_signals_raise

if TYPE_CHECKING:
    from hybridgraph.contract import TokenSource
    from hybridgraph.engine.engine import HybridEngine
    from hybridgraph.serving.client import GeneratorClient
    from hybridgraph.serving.shared_client import SharedBufferClient

# torch is imported inside the functions below: a wrong flag is told at once, and a socket exists before a model does.

PAIRS = {case.key: case for case in (CASE2, CASE4)}
INTERRUPTED = "interrupted: every finished row is on disk; --resume goes on from there"


def _description() -> str | None:
    """The docstring of the script that was started: ``--help`` shows what its case holds fixed and varies."""
    return sys.modules["__main__"].__doc__


@guarded(interrupted=INTERRUPTED)
def run_case(case: Case, argv: Sequence[str] | None = None) -> int:
    """Measure a case that runs in this process; returns the exit code."""
    config = parse_args(argv, description=_description())
    case = _measured(case, config)
    with _reason_recorded(config, case), closing(_opened(config, case)) as source:
        _measure(source, config, case)
    return 0


def _measured(case: Case, config: Config) -> Case:
    """The variant of ``case`` that is measured; says which flags have no meaning for it, and are ignored."""
    case = variant(case, config.forward)
    if unused := config.unused_by(case):
        say(f"{case.title} has no use for {', '.join(unused)}")
    return case


def _opened(config: Config, case: Case) -> TokenSource:
    with progress_bars(ticking=True) as bars:
        bars(IMPORTING, 0, 1)
        from hybridgraph.sources.build import open_source

        return open_source(config, case, bars)


@guarded(interrupted=INTERRUPTED)
def serve(case: Case, argv: Sequence[str] | None = None, *, background: bool = True) -> int:
    """Serve a case's engine on a socket until SIGTERM or Ctrl-C; returns the exit code."""
    config = parse_args(argv, description=_description(), measures=False)
    config = replace(config, async_capture=config.async_capture and background)
    case = variant(case, config.forward)
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


def _announce(state: str) -> None:
    with printing():
        print(state)


@guarded(interrupted=INTERRUPTED)
def run_client(case: Case, argv: Sequence[str] | None = None) -> int:
    """Measure a running generator; returns the exit code."""
    config = parse_args(argv, description=_description())
    case = _measured(case, config)
    if config.socket is None:
        raise UserError(f"--socket is missing: start a generator with: python {case.generator} --socket PATH")
    with _reason_recorded(config, case):
        _measure_generator(Path(config.socket), config, case)
    return 0


@guarded(interrupted=INTERRUPTED)
def run_pair(case: Case, argv: Sequence[str]) -> int:
    """Start a case's generator, measure it from this process, and stop what was started."""
    config = parse_args(argv, without=("socket",))
    case = _measured(case, config)
    from hybridgraph.serving.pair import generator_process

    with stop_signals_raise(), _reason_recorded(config, case):
        say(f"starting {case.generator}")
        with generator_process(case.generator, argv) as path:
            _measure_generator(path, config, case)
    return 0


@guarded(interrupted=INTERRUPTED)
def run_case5() -> int:
    """Measure TensorRT-LLM, or the peer that ``--engine`` names; returns the exit code."""
    config = parse_args(None, description=_description())  # the child is started with the same ones
    from hybridgraph.sources.peers import case_of, measures_here, open_source, run_in_child

    case = case_of(config)
    if here := measures_here(case):
        case = _measured(case, config)
    with stop_signals_raise(), _reason_recorded(config, case, here=here):
        if not here:
            return run_in_child(config, case)
        with closing(open_source(config, case)) as source:
            _measure(source, config, case)
    return 0


def _measure(source: TokenSource, config: Config, case: Case) -> None:
    from hybridgraph.bench.loop import measure
    from hybridgraph.bench.summary import print_summary

    prompts = None
    if config.prompt_file is not None:
        from hybridgraph.sources.prompt_file import text_prompts

        prompts = text_prompts(config, source.info.model)
    results = measure(source, config, case, prompts)
    with printing():
        print_summary(case, results, source.stats(), as_json=config.json)


def _measure_generator(path: Path, config: Config, case: Case) -> None:
    with progress_bars(ticking=True) as bars:
        client = _client_class(config).connect(
            path,
            script=case.generator,
            on_progress=bars,
            on_queued=say_ahead if config.share_buffers else refuse_to_wait,
        )
    with closing(client):
        served = client.info.environment.get("case")
        if served != case.key:
            hint = ": both need the same --forward" if {served, case.key} == {CASE4.key, CASE4_FUSED.key} else ""
            raise UserError(f"the generator at {path} serves {served}, not {case.key}{hint}")
        opened = client.info.environment["resolved_configuration"]
        own = {"precapture": opened.get("precapture") or case.precapture}  # what nobody asked for is the case's
        config.require_opened_as(opened | own, f"the generator at {path}")
        _measure(client, config, case)


def say_ahead(ahead: int) -> None:
    """Who is lent the buffers waits for that before it measures."""
    say(f"waiting: {ahead} requests are ahead")


def refuse_to_wait(ahead: int) -> NoReturn:
    """Raise UserError: a request that waits for another client's would count that as its own latency."""
    raise UserError(f"the generator answers others, whose requests are ahead ({ahead}): measure it alone")


def _client_class(config: Config) -> type[GeneratorClient] | type[SharedBufferClient]:
    if config.share_buffers:
        from hybridgraph.serving.shared_client import SharedBufferClient

        return SharedBufferClient
    from hybridgraph.serving.client import GeneratorClient

    return GeneratorClient


@contextmanager
def _reason_recorded(config: Config, case: Case, *, here: bool = True) -> Iterator[None]:
    """Where a case cannot run, its column in the tables says why. What needs no model to be told is told first.

    ``here``: the case is measured in this process, which alone writes its files until the block ends; otherwise it
    leaves that to its child.
    """
    files = ResultFiles(config.output_path, case.name)
    with ExitStack() as holding:
        holding.enter_context(files.held())
        earlier = run_id_of(files.directory, files.name)  # fails now rather than after the measurement
        if not here:
            holding.close()
        try:
            _require_prompt_file(config)
            yield
        except OutputLost:
            raise  # the case ran, and its rows are on disk
        except (UserError, ModuleNotFoundError) as error:
            with suppress(UserError):  # where nothing can be written, the error itself is all that a user needs
                _record_reason(one_line(error), files, earlier, resumed=config.resume)
            raise


def _require_prompt_file(config: Config) -> None:
    if config.prompt_file is not None:
        from hybridgraph.sources.prompt_file import read_text

        read_text(config.prompt_file)


def _record_reason(reason: str, files: ResultFiles, earlier: str, *, resumed: bool) -> None:
    """Of a run that this attempt began or took up, why it has no more rows; else why there are none.

    An attempt that did neither leaves the rows of earlier runs, and what is told of them, as they were.
    ``earlier``: the run that was recorded before the attempt.
    """
    directory, name = files.directory, files.name
    taken_up = resumed and files.path("_samples.jsonl").exists()
    if taken_up and why_ended(directory, name) is not None:
        return  # it came to no new row: how the run ended before still stands
    latest = run_id_of(directory, name)
    begun = latest != earlier
    if taken_up or begun or not files.exist():
        record_not_run(directory, name, reason, run_id=latest if taken_up or begun else "")


@guarded(interrupted=INTERRUPTED)
def _new_run(arguments: Sequence[str]) -> int:
    config = parse_args(arguments)
    _require_what_every_case_needs(config)
    if not config.resume and (kept := set_all_aside(config.output_path)) is not None:
        say(f"earlier results are kept in {kept}")
    return 0


def _require_what_every_case_needs(config: Config) -> None:
    """Raise UserError for what would end each of the cases: told once, and before earlier results are set aside."""
    _require_prompt_file(config)
    with progress_bars(ticking=True) as bars:
        bars(IMPORTING, 0, 1)
        from hybridgraph.machine.device import existing_device
        from hybridgraph.models.hub import numbers_of
        from hybridgraph.sources.build import default_model

        device = existing_device(config.device)
        model = config.model or default_model(device)
        bars("looking the model up", 0, 1)
        limit = numbers_of(model, config.load_format).get("max_position_embeddings")
    if isinstance(limit, int):
        config.fitted(limit, model)


@guarded(interrupted=INTERRUPTED)
def _not_run(arguments: Sequence[str]) -> int:
    if len(arguments) != 4 or arguments[2] != "--output-dir":
        raise UserError("usage: python -m hybridgraph not-run CASE_NAME REASON --output-dir DIR")
    name, reason, directory = arguments[0], arguments[1], Path(arguments[3])
    run_id = run_id_of(directory, name)  # of this very run, or of the one it resumes: new-run sets others aside
    if why_ended(directory, name) is None or not ResultFiles(directory, name).exist():  # else its end is known
        record_not_run(directory, name, reason, run_id=run_id)
    return 0


def main(argv: Sequence[str]) -> int:
    """The commands of the shell scripts."""
    if argv[:1] == ["pair"] and len(argv) > 1 and argv[1] in PAIRS:
        return run_pair(PAIRS[argv[1]], argv[2:])
    if argv[:1] == ["new-run"]:
        return _new_run(argv[1:])
    if argv[:1] == ["not-run"]:
        return _not_run(argv[1:])
    usage = "{pair {case2,case4} [FLAGS] | new-run [FLAGS] | not-run CASE_NAME REASON --output-dir DIR}"
    say(f"usage: python -m hybridgraph {usage}")
    return 2
