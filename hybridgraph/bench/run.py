"""A run: its rows measured one by one, each on disk before the next. A new one, or one that was interrupted.

An interrupted run goes on (``--resume``) only where protocol, configuration, machine and versions are what they were.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

from hybridgraph.bench.environment import known_of_run
from hybridgraph.bench.loop import MeasuringLoop
from hybridgraph.bench.prompts import Prompts, RandomPrompts
from hybridgraph.bench.protocol import check_fits, lengths, phases, protocol_name
from hybridgraph.bench.samples import Phase, RunIdentity, Sample
from hybridgraph.bench.store import ResultFiles, ResultWriter
from hybridgraph.cases import Case
from hybridgraph.config import SETTINGS, Config, ProtocolSettings
from hybridgraph.contract import SourceInfo, TokenSource
from hybridgraph.errors import UserError
from hybridgraph.machine.nvml import MOMENTARY, GpuMeter
from hybridgraph.machine.provenance import project_commit
from hybridgraph.roofline import Rates
from hybridgraph.system.console import progress_bars, say


def measure(source: TokenSource, config: Config, case: Case, prompts: Prompts | None = None) -> ResultWriter:
    """Run the protocol of ``config`` on ``source`` and write every row; returns the finished results.

    The caller holds the case's files. Raises UserError for what cannot be measured or kept.
    """
    info = source.info
    config = config.opened_as(info.environment.get("resolved_configuration", {}))
    check_fits(config, info)
    prompts = prompts or RandomPrompts(seed=config.seed, vocab_size=info.vocab_size, special_ids=info.special_ids)
    writer = open_results(ResultFiles(config.output_path, case.name), config, info)
    known = known_of_run(config.output_path, case.name, writer.identity.run_id)
    if any(_missing(writer, phase, config) for phase in phases(config)):
        loop = MeasuringLoop(source, prompts, config, writer.identity.run_id, config.launch)
        writer.record(
            identity=asdict(writer.identity),
            configuration=config.as_json(),
            source=asdict(writer.info),
            served_before=known.get("served_before", loop.served_before),
            gpu_spent=known.get("gpu_spent", {}),
        )
        _measure_missing(loop, config, case.title, writer)
        writer.record(stats=source.stats())
    elif known:
        say(f"{case.name} is complete already: nothing is measured")
        writer.record(**known)  # no attempt that failed is the last one
    writer.write_summaries()
    return writer


def _missing(writer: ResultWriter, phase: Phase, config: Config) -> list[int]:
    """The lengths of ``phase`` that this launch has still to measure, ascending."""
    count = phases(config)[phase]
    return [length for length in lengths(config) if not writer.is_done(phase, length, count, config.launch)]


def is_complete(files: ResultFiles, config: ProtocolSettings, launch: int) -> bool:
    """Whether every row of ``launch`` is on disk; raises UserError for samples that cannot be read."""
    found = files.read_samples()
    sizes = Counter((s.phase, s.prompt_length) for s in (found[1] if found else ()) if s.launch == launch)
    wanted = phases(config).items()
    return all(sizes[phase, length] >= count for phase, count in wanted for length in lengths(config))


def _measure_missing(loop: MeasuringLoop, config: Config, title: str, writer: ResultWriter) -> None:
    """Measure row by row, each on disk before the next."""
    spent = writer.facts["gpu_spent"]
    with loop.taking(), progress_bars() as advance, _meter(writer.info) as meter:
        loop.warm_up(lengths(config), config.warmup)
        loop.warm_up_again(writer.samples)
        for phase, count in phases(config).items():
            missing = _missing(writer, phase, config)
            for number, length in enumerate(missing):
                advance(f"{title}: {phase}", number, len(missing))
                writer.require_own_file()
                meter()
                row = loop.row(phase, length, count)
                of_phase = spent.setdefault(phase, {})
                of_phase[str(length)] = _added(of_phase.get(str(length), {}), meter())
                writer.add(row)
                writer.record()
            advance(f"{title}: {phase}", len(missing), len(missing))
    writer.require_own_file()


def _added(before: Mapping[str, Any], lap: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's earlier launches spent and this one's together; of the clock, which is no sum, the latest."""
    sums = {
        name: before[name] + value
        for name, value in lap.items()
        if name not in MOMENTARY and isinstance(value, (int, float)) and isinstance(before.get(name), (int, float))
    }
    return {**lap, **sums}


@contextmanager
def _meter(info: SourceInfo) -> Iterator[Callable[[], dict[str, Any]]]:
    """What the GPU spent since the call before; nothing where there is none."""
    uuid = info.environment.get("gpu", {}).get("uuid")
    if uuid is None:
        yield dict
    else:
        with closing(GpuMeter(uuid)) as meter:
            yield meter.lap


def open_results(files: ResultFiles, config: Config, info: SourceInfo) -> ResultWriter:
    """The writer of a new run, or of the one that ``--resume`` continues; an earlier run's files are kept aside."""
    identity = identify(config, info)
    flag = "--resume" if config.resume else f"--launch {config.launch}"
    if config.continues and (found := files.read_samples()) is not None:
        old, samples = found
        known = known_of_run(files.directory, files.name, old.run_id)
        machine = _machine(known.get("source", {}).get("environment", {}))
        same_run = replace(identity, run_id=old.run_id, started=old.started)
        require_same = partial(_require_same, flag, config.output_dir)
        require_same(asdict(old), asdict(same_run))
        decisive = {name: value for name, value in config.as_json().items() if SETTINGS[name].decides}
        require_same(known.get("configuration", {}), decisive)
        require_same(machine, _machine(info.environment))
        info = replace(info, rates=_recorded_rates(known) or info.rates)  # so that every row of the run has one floor
        return ResultWriter(files, old, info, _complete_rows(samples, phases(config)))
    if config.launch > 1:
        raise UserError(f"--launch {config.launch}: {config.output_dir} has no earlier launch of {files.name}")
    if config.resume:
        say(f"nothing of {files.name} to resume in {config.output_dir}")
    kept = files.set_aside()
    if kept is not None:
        say(f"earlier results of {files.name} are kept in {kept}")
    return ResultWriter(files, identity, info, ())


def _require_same(flag: str, directory: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError for what may not differ between a run and its continuation; what was not recorded may."""
    for name, value in now.items():
        if before.get(name, value) != value:
            raise UserError(f"{flag}: the run in {directory} had {name} {before[name]}, this one has {value}")


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    """Hardware and versions, with names such as ``gpu.driver`` for what is nested."""
    flat: dict[str, Any] = {}
    for name, value in environment.items():
        if name in ("resolved_configuration", "engine"):
            continue  # compared as the run's configuration; an engine's arguments name temporary files beside it
        if isinstance(value, dict):
            flat |= {f"{name}.{part}": each for part, each in value.items() if part not in MOMENTARY}
        else:
            flat[name] = value
    return flat


def _recorded_rates(known: dict[str, Any]) -> Rates | None:
    try:
        return Rates(**known["source"]["rates"])
    except (KeyError, TypeError):  # of a run that could not measure any
        return None


def _complete_rows(samples: Sequence[Sample], wanted: Mapping[Phase, int]) -> list[Sample]:
    """The samples of rows that were measured to their end: half a row is measured again as a whole."""
    sizes = Counter((sample.phase, sample.prompt_length, sample.launch) for sample in samples)
    return [s for s in samples if sizes[s.phase, s.prompt_length, s.launch] >= wanted.get(s.phase, 0)]


def identify(config: ProtocolSettings, info: SourceInfo) -> RunIdentity:
    """What the rows of this run are told apart by."""
    return RunIdentity(
        graph_backend=info.graph_backend,
        model=info.model,
        dtype=info.dtype,
        load_format=info.load_format,
        device=info.device,
        run_id=uuid.uuid4().hex[:12],
        ops=info.ops,
        forward=info.forward,
        sampling="greedy" if config.greedy else f"T={config.temperature:g}",
        seed=config.seed,
        protocol=protocol_name(config),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=project_commit(),
    )
