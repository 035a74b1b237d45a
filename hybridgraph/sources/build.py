"""From a configuration to something that answers: the model, and the engine over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hybridgraph.cases import Case
from hybridgraph.config import EngineSettings
from hybridgraph.contract import SourceInfo
from hybridgraph.engine.engine import HybridEngine
from hybridgraph.engine.graphs.policy import RULES
from hybridgraph.engine.settings import EngineOptions, fitting
from hybridgraph.errors import UserError
from hybridgraph.machine.device import describe, device_name, existing_device, measure_rates
from hybridgraph.models.loading import LoadedModel, load_model
from hybridgraph.models.shapes import DEFAULT_CPU_MODEL, DEFAULT_GPU_MODEL
from hybridgraph.settings import parse_lengths
from hybridgraph.system.console import OnProgress, no_op, say


def resolve(config: EngineSettings) -> tuple[EngineSettings, torch.device]:
    """Fill in what follows the device, say so, and return the device; raises UserError where it does not exist."""
    device = existing_device(config.device)
    on_gpu = device.type == "cuda"
    resolved = replace(
        config,
        device=str(device),
        model=config.model or default_model(device),
        dtype=config.dtype or ("float16" if on_gpu else "float32"),
    )
    if on_gpu and device.index is not None:
        torch.cuda.set_device(device)
    say(f"{resolved.model}, {resolved.load_format} weights, {resolved.dtype}, on {device_name(device)}")
    return resolved, device


def default_model(device: torch.device) -> str:
    return DEFAULT_GPU_MODEL if device.type == "cuda" else DEFAULT_CPU_MODEL


def load(
    config: EngineSettings, case: Case, progress: OnProgress = no_op
) -> tuple[LoadedModel, SourceInfo, EngineSettings]:
    """Load the model on the device that ``config`` means; returns it, what both are, and ``config`` resolved."""
    resolved, device = resolve(config)
    assert resolved.model is not None and resolved.dtype is not None
    progress("loading weights", 0, 1)
    loaded = load_model(
        resolved.model, load_format=resolved.load_format, dtype=resolved.dtype, device=device, seed=resolved.seed
    )
    resolved = replace(resolved.fitted(loaded.max_positions, loaded.name), ops=case.ops and (config.ops or case.ops))
    progress("measuring the device", 0, 1)
    info = loaded.info(
        rates=measure_rates(device, loaded.dtype),
        environment=describe(device)
        | {
            "case": case.key,
            "resolved_configuration": resolved.as_json(),
            "auto_device": str(existing_device(EngineSettings.device)),
        },
    )
    return loaded, info, resolved


def open_engine(config: EngineSettings, case: Case, progress: OnProgress = no_op) -> HybridEngine:
    """The engine of a case, ready to answer."""
    loaded, info, resolved = load(config, case, progress)
    assert resolved.ops is not None and case.forward is not None
    options = EngineOptions(
        ops=resolved.ops,
        forward=case.forward,
        weights=resolved.weights if case.forward == "fused" else EngineSettings.weights,
        graphs=case.graphs,
        precapture=_precapture(resolved, case),
        max_graphs=config.max_graphs,
        max_graph_mib=config.max_graph_mib,
        async_capture=case.async_capture and config.async_capture,
        positions=resolved.positions,
    )
    return HybridEngine(loaded, options, info, progress)


def _precapture(config: EngineSettings, case: Case) -> Sequence[int]:
    """Of a case's own lengths, those that fit; of a user's, all: raises UserError where they do not."""
    if case.graphs == "none":
        return ()
    if not config.precapture:
        own = fitting(parse_lengths(case.precapture), config.positions, config.max_graphs)
        return _serving(config.prompt_lengths, own, case, config.positions) if config.device == "cpu" else own
    lengths = parse_lengths(config.precapture)
    if max(lengths) > config.positions:
        raise UserError(f"--precapture {config.precapture}: there are {config.positions} positions (--max-seq-len)")
    return lengths


def _serving(measured: Sequence[int], own: Sequence[int], case: Case, positions: int) -> Sequence[int]:
    """Of a case's own lengths, those whose graphs serve what is measured: to emulate the others would prove nothing."""
    rule = RULES[case.graphs]
    found: set[int] = set()
    for length in measured:
        if (one := rule.serving(length, own)) is not None:
            found.add(one)
        else:
            found.update(chunk.key for chunk in rule.split_into_chunks(length, own, positions) or ())
    return sorted(found)
