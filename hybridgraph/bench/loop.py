"""The measuring loop: the same for every case, over anything that turns ids into tokens.

TTFT starts when the prompt's ids are a Python list in this process, before the request is sent,
and ends when the first sampled id is a Python int here. ITL is the time between two such ends.

The paper protocol: no warm-up, lengths in ascending order, 5 requests a length for TTFT, then
100 a length for P99, each as soon as the one before was answered; with ``--decode-tokens``, a third
pass measures ITL.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import accumulate, pairwise
from typing import Any

from hybridgraph.bench.environment import known_of_run, record_case
from hybridgraph.bench.prompts import Prompts, RandomPrompts
from hybridgraph.bench.run import open_results, phases
from hybridgraph.bench.samples import PHASES, Phase, Sample, Warmth
from hybridgraph.bench.store import ResultFiles, ResultWriter
from hybridgraph.cases import Case
from hybridgraph.config import Config, ProtocolSettings, RequestSettings
from hybridgraph.contract import GRAPH_PATHS, Request, SourceInfo, TokenSource
from hybridgraph.errors import UserError
from hybridgraph.machine.nvml import GpuMeter
from hybridgraph.system.console import progress_bars, say


def measure(source: TokenSource, config: Config, case: Case, prompts: Prompts | None = None) -> ResultWriter:
    """Run the protocol of ``config`` on ``source`` and write every row; returns the finished results.

    The caller holds the case's files.
    """
    info = source.info
    config = config.opened_as(info.environment.get("resolved_configuration", {}))
    check_fits(config, info)
    prompts = prompts or RandomPrompts(seed=config.seed, vocab_size=info.vocab_size, special_ids=info.special_ids)
    files = ResultFiles(config.output_path, case.name)
    writer = open_results(files, config, info)
    if any(missing_lengths(writer, phase, count, config) for phase, count in phases(config)):
        loop = MeasuringLoop(source, prompts, config, writer.identity.run_id)
        measure_missing(loop, source, config, case, writer)
    elif known := known_of_run(config.output_path, case.name, writer.identity.run_id):
        say(f"{case.name} is complete already: nothing is measured")
        record_case(config.output_path, case.name, known)  # no attempt that failed is the last one
    writer.write_summaries()
    return writer


def missing_lengths(writer: ResultWriter, phase: Phase, count: int, config: ProtocolSettings) -> list[int]:
    """The lengths of ``phase`` that are still to be measured, ascending."""
    return [length for length in sorted(set(config.prompt_lengths)) if not writer.is_done(phase, length, count)]


def measure_missing(loop: MeasuringLoop, source: TokenSource, config: Config, case: Case, writer: ResultWriter) -> None:
    """Measure row by row, each on disk before the next; ``environment.json`` is written before the first."""
    directory, name = config.output_path, case.name
    known = known_of_run(directory, name, writer.identity.run_id)
    spent = known.get("gpu_spent", {})
    entry = {
        "identity": asdict(writer.identity),
        "configuration": config.as_json(),
        "source": asdict(writer.info),
        "served_before": known.get("served_before", loop.served_before),
        "gpu_spent": spent,
    }
    record_case(directory, name, entry)
    with _collector_frozen(), progress_bars() as advance, _meter(source.info) as meter:
        loop.warm_up(sorted(set(config.prompt_lengths)), config.warmup)
        loop.warm_up_again(writer.samples)
        for phase, count in phases(config):
            lengths = missing_lengths(writer, phase, count, config)
            for number, length in enumerate(lengths):
                advance(f"{case.title}: {phase}", number, len(lengths))
                meter()
                row = loop.row(phase, length, count)
                spent.setdefault(phase, {})[str(length)] = meter()
                writer.add(row)
                record_case(directory, name, entry)
            advance(f"{case.title}: {phase}", len(lengths), len(lengths))
    record_case(directory, name, entry | {"stats": source.stats()})


def check_fits(config: RequestSettings, info: SourceInfo) -> None:
    """Raise UserError for a request that this source has no positions for."""
    if config.longest_request > info.max_seq_len:
        raise UserError(
            f"prompt length {max(config.prompt_lengths)} and {config.new_tokens} new tokens exceed "
            f"the {info.max_seq_len} positions of {info.model}: ask for more with "
            f"--max-seq-len {config.longest_request}"
        )


class MeasuringLoop:
    """Takes the samples. What a sample costs beside the request itself is two clock reads and one record."""

    def __init__(self, source: TokenSource, prompts: Prompts, config: ProtocolSettings, run_id: str) -> None:
        self._source = source
        self._prompts = prompts
        self._config = config
        self._run_id = run_id
        counters = source.stats().get("counters", {})
        self.served_before = sum(counters.get(path, 0) for path in GRAPH_PATHS)
        self._is_cold = not self.served_before
        self._seen: set[tuple[bool, int]] = set()  # whether more than one token was asked for, and the length
        # No two requests of a run share their ids: the prompts of the phases follow each other.
        counts = dict(phases(config))
        ends = accumulate((counts.get(phase, 0) for phase in PHASES), initial=0)
        self._first_prompt = dict(zip((*PHASES, "warm-up"), ends, strict=True))

    def warm_up(self, lengths: Sequence[int], count: int) -> None:
        """``count`` unmeasured requests at each length."""
        for length in lengths:
            for index in range(count):
                self._sample("ttft", length, self._first_prompt["warm-up"] + index, self._config.new_tokens)

    def warm_up_again(self, samples: Sequence[Sample]) -> None:
        """What ``samples`` of the same run found warm must be so again; what they had not seen, stays to be seen."""
        for length, new_tokens in sorted({(sample.prompt_length, 1 + len(sample.itl_ms)) for sample in samples}):
            self._sample("ttft", length, self._first_prompt["warm-up"], new_tokens)

    def row(self, phase: Phase, length: int, count: int) -> list[Sample]:
        """``count`` samples of ``phase`` at one length."""
        new_tokens, first = self._config.new_tokens if phase == "decode" else 1, self._first_prompt[phase]
        return [self._sample(phase, length, first + i, new_tokens, iteration=i) for i in range(count)]

    def _sample(self, phase: Phase, length: int, prompt_index: int, new_tokens: int, *, iteration: int = 0) -> Sample:
        if self._config.pause_ms:
            time.sleep(self._config.pause_ms / 1e3)
        request = Request(
            prompt_ids=self._prompts.ids(length, prompt_index),
            max_new_tokens=new_tokens,
            temperature=self._config.request_temperature,
            seed=self._config.seed + prompt_index,
        )
        stamps_ns: list[int] = []
        clock = time.perf_counter_ns

        def emit(token: int) -> None:
            stamps_ns.append(clock())  # the id is an int in this process: TTFT ends, or one ITL does

        collections = _collections()
        start_ns = clock()  # the ids are a list; nothing has been sent yet
        report = self._source.stream(request, emit)
        if len(stamps_ns) != new_tokens:
            raise UserError(f"{len(stamps_ns)} tokens came back where {new_tokens} were asked for")
        return Sample(
            run_id=self._run_id,
            phase=phase,
            prompt_length=length,
            iteration=iteration,
            warmth=self._warmth(new_tokens > 1, length),
            ttft_ms=(stamps_ns[0] - start_ns) / 1e6,
            device_ms=report.device_ms,
            engine_ttft_ms=report.engine_ttft_ms,
            graph_path=report.graph_path,
            itl_ms=[(b - a) / 1e6 for a, b in pairwise(stamps_ns)],
            gc_collections=_collections() - collections,
            overflowed=report.overflowed,
        )

    def _warmth(self, decodes: bool, length: int) -> Warmth:
        warmth: Warmth = "cold" if self._is_cold else "warm" if (decodes, length) in self._seen else "first_seen"
        self._is_cold = False
        self._seen |= {(decodes, length), (False, length)}  # an answer of several tokens has a first one
        return warmth


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


@contextmanager
def _meter(info: SourceInfo) -> Iterator[Callable[[], dict[str, Any]]]:
    """What the GPU spent since the call before; nothing where there is none."""
    uuid = info.environment.get("gpu", {}).get("uuid")
    if uuid is None:
        yield dict
    else:
        with closing(GpuMeter(uuid)) as meter:
            yield meter.lap


@contextmanager
def _collector_frozen() -> Iterator[None]:
    """While samples are taken, the collector never looks at what set-up has left."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
