"""The protocol: which requests are measured, in which order, and what that is called.

The paper's: no warm-up, lengths in ascending order, 5 requests a length for TTFT, then 100 a length for P99, each as
soon as the one before was answered. With ``--decode-tokens``, a third pass measures ITL.
"""

from __future__ import annotations

from hybridgraph.bench.samples import Phase
from hybridgraph.cases import PAPER_PROMPT_LENGTHS
from hybridgraph.config import ProtocolSettings, RequestSettings
from hybridgraph.contract import SourceInfo
from hybridgraph.errors import UserError

PAPER = "paper"  # the protocol of the study
DECODE_REQUESTS = 6  # the first of them, in which a case sees its first such answer, apart


def phases(config: ProtocolSettings) -> dict[Phase, int]:
    """Return the requests a length of each phase that is measured, in their order."""
    decode = DECODE_REQUESTS if config.decode_tokens else 0
    wanted: dict[Phase, int] = {"ttft": config.ttft_iterations, "p99": config.p99_iterations, "decode": decode}
    return {phase: count for phase, count in wanted.items() if count}


def lengths(config: RequestSettings) -> list[int]:
    """Return the prompt lengths as they are measured: each once, ascending."""
    return sorted(set(config.prompt_lengths))


def check_fits(config: RequestSettings, info: SourceInfo) -> None:
    """Raise UserError for a request that this source has no positions for."""
    if config.longest_request > info.max_seq_len:
        raise UserError(
            f"prompt length {max(config.prompt_lengths)} and {config.new_tokens} new tokens exceed "
            f"the {info.max_seq_len} positions of {info.model}: ask for more with "
            f"--max-seq-len {config.longest_request}"
        )


def protocol_name(config: ProtocolSettings) -> str:
    """Return PAPER for the study's counts and lengths, otherwise what was asked for instead."""
    asked = (config.ttft_iterations, config.p99_iterations, config.warmup)
    apart = f", {config.pause_ms:g} ms apart" if config.pause_ms else ""
    if asked != (5, 100, 0):
        return "{}+{} requests, warm-up {}".format(*asked) + apart
    others = "" if set(config.prompt_lengths) == set(PAPER_PROMPT_LENGTHS) else ", other lengths"
    return f"{PAPER}{others}{apart}"
