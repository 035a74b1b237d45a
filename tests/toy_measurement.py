"""A measurement as an entry point makes it, of a source that only counts: files, signals and ends without a model.

    python -m tests.toy_measurement HOLD_AT [FLAGS]

It prints the number of each request when that begins; before it answers number HOLD_AT, it waits for a line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from hybridgraph.bench.run import measure
from hybridgraph.bench.store import ResultFiles
from hybridgraph.bench.summary import print_summary
from hybridgraph.cases import CASE1
from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.settings import Program
from hybridgraph.system.command_line import parse_args
from hybridgraph.system.console import guarded


class HoldingSource:
    info = SourceInfo(
        model="toy", dtype="none", load_format="dummy", device="cpu", vocab_size=100, max_seq_len=512
    )  # fmt: skip

    def __init__(self, hold_at: int) -> None:
        self._hold_at = hold_at
        self._num_requests = 0

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        self._num_requests += 1
        if self._num_requests == self._hold_at:
            print(f"request {self._num_requests}", flush=True)
            sys.stdin.readline()
        for token in range(request.max_new_tokens):
            emit(token)
        return Report(graph_path="eager")

    def stats(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


@guarded(interrupted="interrupted")
def main(argv: Sequence[str]) -> int:
    config = parse_args(argv[1:], Program.CASE, [CASE1])
    with ResultFiles(config.output_path, CASE1.name).held():
        results = measure(HoldingSource(int(argv[0])), config, CASE1)
    print_summary(CASE1, results, {}, as_json=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
