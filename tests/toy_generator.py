"""A generator whose engine is arithmetic: the protocol and its faults are tested without a model.

    python tests/toy_generator.py SOCKET [--start-s S] [--silent-start] [--fail-start TEXT] [--hello-timeout S]
                                         [--finish S] [--beat S] [--harmless]

Without --harmless four ids are not: 6 and 7 make the engine raise, 8 makes each token take 50 ms, 99 the first one 3 s.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.serving.server import Timeouts, serve
from hybridgraph.system.console import OnProgress

if TYPE_CHECKING:
    from torch import Tensor

VOCAB_SIZE, MAX_SEQ_LEN = 100, 600
BREAKS_FOR_GOOD, BREAKS, SLOW, LONG_CALL = 6, 7, 8, 99
TOKEN_S, LONG_CALL_S = 0.05, 3.0


def toy_answer(prompt_ids: list[int], count: int, seed: int) -> list[int]:
    return [(sum(prompt_ids) + seed + 3 * index) % VOCAB_SIZE for index in range(count)]


class ToyEngine:
    is_capturing = False

    def __init__(self, *, harmless: bool = False) -> None:
        self.harmless = harmless
        self.info = SourceInfo(
            model="toy",
            dtype="none",
            load_format="dummy",
            device="cpu",
            vocab_size=VOCAB_SIZE,
            max_seq_len=MAX_SEQ_LEN,
            environment={"nested": [1, {"a": None}]},
        )
        self.abandoned = 0
        self.broken = False
        self.static: dict[str, Tensor] = {}

    def check(self, request: Request) -> None:
        if not request.prompt_ids:
            raise UserError("the prompt is empty")
        if len(request.prompt_ids) + request.max_new_tokens > MAX_SEQ_LEN:
            raise UserError(f"{len(request.prompt_ids)} ids and {request.max_new_tokens} new: at most {MAX_SEQ_LEN}")
        for token_id in request.prompt_ids:
            if not 0 <= token_id < VOCAB_SIZE:
                raise UserError(f"token id {token_id} is outside the vocabulary of {VOCAB_SIZE}")

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        self.check(request)
        self.abandoned += 1
        does = set() if self.harmless else {*request.prompt_ids}
        if LONG_CALL in does:
            time.sleep(LONG_CALL_S)
        for token_id in toy_answer(request.prompt_ids, request.max_new_tokens, request.seed):
            if BREAKS in does:
                raise RuntimeError("the engine broke\non two lines")
            if BREAKS_FOR_GOOD in does:
                self.broken = True
                raise RuntimeError("device-side assert")
            if SLOW in does:
                time.sleep(TOKEN_S)
            emit(token_id)
        self.abandoned -= 1
        return Report(device_ms=1.5, graph_path="exact")

    def hold(self) -> AbstractContextManager[None]:
        return nullcontext()

    def shared_tensors(self) -> dict[str, Tensor]:
        import torch  # here: a toy that lends nothing starts at once

        if not self.static:
            sizes = {"ids": MAX_SEQ_LEN, "last": 1, "token": 1, "position": 1, "logits": VOCAB_SIZE}
            self.static = {name: torch.zeros(size, dtype=torch.int64) for name, size in sizes.items()}
        return self.static

    def replay_prefill(self, length: int) -> Report:
        if not 1 <= length <= MAX_SEQ_LEN:
            raise UserError(f"a prompt of {length} ids: from 1 to {MAX_SEQ_LEN}")
        self.static["logits"].fill_(int(self.static["ids"][:length].sum()) % VOCAB_SIZE)
        return Report(graph_path="exact")

    def replay_decode(self) -> None:
        self.static["logits"].add_(self.static["token"]).remainder_(VOCAB_SIZE)

    def forget_overflow(self) -> bool:
        return False

    def require_usable(self) -> None:
        if self.broken:
            raise RuntimeError("device-side assert")

    def stats(self) -> dict[str, Any]:
        return {"abandoned": self.abandoned}

    def close(self) -> None:
        print("engine closed", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("--start-s", type=float, default=0.0)
    parser.add_argument("--silent-start", action="store_true")
    parser.add_argument("--fail-start")
    parser.add_argument("--harmless", action="store_true")
    parser.add_argument("--hello-timeout", type=float, default=5.0)
    parser.add_argument("--finish", type=float, default=1.0)
    parser.add_argument("--beat", type=float, default=5.0)
    options = parser.parse_args()

    def open_engine(progress: OnProgress) -> ToyEngine:
        end = time.monotonic() + options.start_s
        if options.silent_start:
            time.sleep(options.start_s)
        while time.monotonic() < end:
            progress("capturing graphs", 1, 3)
            time.sleep(0.01)
        if options.fail_start:
            raise UserError(options.fail_start)
        return ToyEngine(harmless=options.harmless)

    try:
        return serve(
            options.socket,
            open_engine,
            on_listening=lambda path: print("listening", flush=True),
            on_ready=lambda: print("ready", flush=True),
            timeouts=Timeouts(hello_s=options.hello_timeout, finish_s=options.finish, beat_s=options.beat),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
