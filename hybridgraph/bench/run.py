"""The run whose rows a measurement writes: a new one, or with ``--resume`` one that was interrupted.

An interrupted run goes on only where protocol, configuration, machine and versions are what they were.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

from hybridgraph.bench.environment import known_of_run
from hybridgraph.bench.samples import PAPER, Phase, RunIdentity, Sample
from hybridgraph.bench.store import ResultFiles, ResultWriter
from hybridgraph.cases import PAPER_PROMPT_LENGTHS
from hybridgraph.config import SETTINGS, Config, ProtocolSettings
from hybridgraph.contract import SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.machine.nvml import MOMENTARY
from hybridgraph.machine.provenance import project_commit
from hybridgraph.roofline import Rates
from hybridgraph.system.console import say

DECODE_REQUESTS = 6  # the first of them, in which a case sees its first such answer, apart


def phases(config: ProtocolSettings) -> list[tuple[Phase, int]]:
    """(phase, requests a length) in the order they are measured."""
    decode = DECODE_REQUESTS if config.decode_tokens else 0
    wanted: list[tuple[Phase, int]] = [
        ("ttft", config.ttft_iterations),
        ("p99", config.p99_iterations),
        ("decode", decode),
    ]
    return [(phase, count) for phase, count in wanted if count]


def open_results(files: ResultFiles, config: Config, info: SourceInfo) -> ResultWriter:
    """The writer of a new run, or of the one that ``--resume`` continues; an earlier run's files are kept aside."""
    identity = identify(config, info)
    if config.resume and (found := files.read_samples()) is not None:
        old, samples = found
        known = known_of_run(files.directory, files.name, old.run_id)
        machine = _machine(known.get("source", {}).get("environment", {}))
        same_run = replace(identity, run_id=old.run_id, started=old.started)
        _require_same(config.output_dir, asdict(old), asdict(same_run))
        decisive = {name: value for name, value in config.as_json().items() if SETTINGS[name].decides}
        _require_same(config.output_dir, known.get("configuration", {}), decisive)
        _require_same(config.output_dir, machine, _machine(info.environment))
        info = replace(info, rates=_recorded_rates(known) or info.rates)  # so that every row of the run has one floor
        return ResultWriter(files, old, info, _complete_rows(samples, phases(config)))
    if config.resume:
        say(f"nothing of {files.name} to resume in {config.output_dir}")
    kept = files.set_aside()
    if kept is not None:
        say(f"earlier results of {files.name} are kept in {kept}")
    return ResultWriter(files, identity, info, ())


def _require_same(directory: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError for what may not differ between a run and its continuation; what was not recorded may."""
    for name, value in now.items():
        if before.get(name, value) != value:
            raise UserError(f"--resume: the run in {directory} had {name} {before[name]}, this one has {value}")


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


def _complete_rows(samples: Sequence[Sample], wanted: Sequence[tuple[Phase, int]]) -> list[Sample]:
    """The samples of rows that were measured to their end: half a row is measured again as a whole."""
    sizes = Counter((sample.phase, sample.prompt_length) for sample in samples)
    counts = dict(wanted)
    return [s for s in samples if sizes[s.phase, s.prompt_length] >= counts.get(s.phase, 0)]


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


def protocol_name(config: ProtocolSettings) -> str:
    """PAPER for the study's counts and lengths, otherwise what was asked for instead."""
    asked = (config.ttft_iterations, config.p99_iterations, config.warmup)
    apart = f", {config.pause_ms:g} ms apart" if config.pause_ms else ""
    if asked != (5, 100, 0):
        return "{}+{} requests, warm-up {}".format(*asked) + apart
    lengths = "" if set(config.prompt_lengths) == set(PAPER_PROMPT_LENGTHS) else ", other lengths"
    return f"{PAPER}{lengths}{apart}"
