"""From a configuration to something that answers: the model, the engine, the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hybridgraph import environment
from hybridgraph.cases import CASE1, Case
from hybridgraph.config import Config, parse_lengths
from hybridgraph.engine import HybridEngine
from hybridgraph.errors import UserError
from hybridgraph.model import LoadedModel, load_model
from hybridgraph.options import EngineOptions, fitting
from hybridgraph.progress import OnProgress, nobody
from hybridgraph.records import SourceInfo, TokenSource
from hybridgraph.sources.huggingface import HuggingFaceSource


def load(config: Config, case: Case, progress: OnProgress = nobody) -> tuple[LoadedModel, SourceInfo, Config]:
    """Load the model on the device that ``config`` means; returns it, what both are, and ``config`` resolved."""
    resolved, device = environment.resolve(config)
    assert resolved.model is not None and resolved.dtype is not None
    progress("loading weights", 0, 1)
    loaded = load_model(
        resolved.model, load_format=resolved.load_format, dtype=resolved.dtype, device=device, seed=resolved.seed
    )
    resolved = replace(resolved.fitted(loaded.max_positions, loaded.name), ops=case.ops and (config.ops or case.ops))
    progress("measuring the device", 0, 1)
    info = loaded.info(
        rates=environment.measure_rates(device, loaded.dtype),
        environment=environment.describe(device) | {"case": case.key, "resolved_configuration": resolved.as_json()},
    )
    return loaded, info, resolved


def open_engine(config: Config, case: Case, progress: OnProgress = nobody) -> HybridEngine:
    """The engine of a case, ready to answer."""
    loaded, info, resolved = load(config, case, progress)
    assert resolved.ops is not None and case.forward is not None
    options = EngineOptions(
        ops=resolved.ops,
        forward=case.forward,
        graphs=case.graphs,
        precapture=_precapture(resolved, case),
        max_graphs=resolved.max_graphs,
        max_graph_mib=resolved.max_graph_mib,
        async_capture=case.async_capture and resolved.async_capture,
        positions=resolved.positions,
    )
    return HybridEngine(loaded, options, info, progress)


def _precapture(config: Config, case: Case) -> Sequence[int]:
    """Of a case's own lengths, those that fit; of a user's, all: raises UserError where they do not."""
    if case.graphs == "none":
        return ()
    if not config.precapture:
        return fitting(parse_lengths(case.precapture), config.positions, config.max_graphs)
    lengths = parse_lengths(config.precapture)
    if max(lengths) > config.positions:
        raise UserError(f"--precapture {config.precapture}: there are {config.positions} positions (--max-seq-len)")
    return lengths


def open_source(config: Config, case: Case, progress: OnProgress = nobody) -> TokenSource:
    """The source of a case that runs in one process."""
    if case == CASE1:
        loaded, info, _ = load(config, case, progress)
        return HuggingFaceSource(loaded, replace(info, forward="hf", ops="generate()"))
    return open_engine(config, case, progress)
