"""What a generator answers: ids when they exist, progress before, one line for a request that cannot be answered."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from toy_clients import SCRIPT, ask, channel_to, client_of, generate, receive_until, surviving_toy, toy
from toy_generator import BREAKS, BREAKS_FOR_GOOD, MAX_SEQ_LEN, SLOW, TOKEN_S, VOCAB_SIZE, toy_answer

from hybridgraph.contract import Report, Request
from hybridgraph.errors import UserError
from hybridgraph.serving.client import GeneratorClient, RequestFailed
from hybridgraph.serving.ipc.messages import HELLO, MAX_FRAME_BYTES, Done, Failed, Prefill, Token


@pytest.fixture(scope="module")
def served() -> Iterator[Path]:
    with surviving_toy() as path:
        yield path


def test_answer_is_streamed_and_reported(served: Path) -> None:
    with client_of(served) as client:
        assert client.info.vocab_size == VOCAB_SIZE
        assert client.info.environment == {"nested": [1, {"a": None}]}
        ids: list[int] = []
        request = Request(prompt_ids=[1, 2, 3], max_new_tokens=5, seed=4)
        assert client.stream(request, ids.append) == Report(device_ms=1.5, graph_path="exact")
        assert ids == toy_answer([1, 2, 3], 5, 4)


def test_answer_that_is_slow_arrives_token_by_token(served: Path) -> None:
    stamps: list[float] = []
    with client_of(served) as client:
        client.stream(Request(prompt_ids=[SLOW], max_new_tokens=4), lambda _: stamps.append(time.perf_counter()))
    gaps = [after - before for before, after in pairwise(stamps)]
    assert statistics.median(gaps) > TOKEN_S / 2


def test_start_is_shown_before_ready() -> None:
    seen: list[tuple[str, int, int]] = []
    with toy("--start-s", "0.5", ready=False) as generator:
        client = GeneratorClient.connect(
            generator.path, script=SCRIPT, on_progress=lambda *progress: seen.append(progress)
        )
        with closing(client):
            assert ("capturing graphs", 1, 3) in seen
            assert client.stats()["server"]["startup_s"] >= 0.5
            assert ask(client, [1], 1) == toy_answer([1], 1, 0)


def test_request_sent_before_ready_is_answered() -> None:
    with toy("--start-s", "0.3", ready=False) as generator, channel_to(generator.path, greet=False) as channel:
        channel.send(HELLO)
        channel.send(generate(1, [5]))
        tokens = [m for m in receive_until(channel, Done) if isinstance(m, Token)]
        assert [t.id for t in tokens] == toy_answer([5], 1, 0)


def test_round_trip_is_short(served: Path) -> None:
    times_us: list[float] = []
    request = Request(prompt_ids=[1] * 10)
    with client_of(served) as client:
        for _ in range(300):
            start_ns = time.perf_counter_ns()
            client.stream(request, lambda _: times_us.append((time.perf_counter_ns() - start_ns) / 1e3))  # noqa: B023
    # About 90 µs where nothing else runs; the bound only catches a poll or Nagle's kind of delay, 40 ms and more.
    assert statistics.median(times_us) < 20_000


@pytest.mark.parametrize(
    ("prompt_ids", "count", "error"),
    [
        ([], 1, "the prompt is empty"),
        ([VOCAB_SIZE], 1, f"token id {VOCAB_SIZE} is outside the vocabulary of {VOCAB_SIZE}"),
        ([-1], 1, "token id -1 is outside the vocabulary of 100"),
        ([2**63 - 1], 1, "token id 9223372036854775807 is outside the vocabulary of 100"),
        ([1] * MAX_SEQ_LEN, 1, f"{MAX_SEQ_LEN} ids and 1 new: at most {MAX_SEQ_LEN}"),
    ],
)
def test_bad_request_is_refused_and_its_client_goes_on(
    served: Path, prompt_ids: list[int], count: int, error: str
) -> None:
    with client_of(served) as client:
        with pytest.raises(RequestFailed) as failure:
            ask(client, prompt_ids, count)
        assert str(failure.value) == error
        assert failure.value.kind == "request"
        assert ask(client, [4]) == toy_answer([4], 1, 0)


def test_message_too_large_is_not_sent(served: Path) -> None:
    with client_of(served) as client:
        with pytest.raises(UserError, match=f"at most {MAX_FRAME_BYTES}"):
            ask(client, [1] * (MAX_FRAME_BYTES + 1))
        assert ask(client, [4]) == toy_answer([4], 1, 0)


def test_engine_error_is_one_line_and_the_generator_goes_on() -> None:
    with toy() as generator:
        with client_of(generator.path) as client:
            with pytest.raises(RequestFailed, match="RuntimeError: the engine broke on two lines") as failure:
                ask(client, [BREAKS])
            assert failure.value.kind == "engine"
            assert ask(client, [4]) == toy_answer([4], 1, 0)
        _, _, log = generator.end()
        assert log == "generator: a request failed in the engine: RuntimeError: the engine broke on two lines\n"


def test_device_that_is_lost_ends_the_generator() -> None:
    with toy() as generator, client_of(generator.path) as client, channel_to(generator.path) as other:
        with pytest.raises(RequestFailed, match="device-side assert"):
            ask(client, [BREAKS_FOR_GOOD])
        reason = "the device can no longer be used (RuntimeError: device-side assert): start the generator again"
        assert other.receive() == Failed(request_id=None, kind="engine", error=reason)
        _, log = generator.process.communicate(timeout=20)
        assert (generator.process.returncode, log.splitlines()[-1]) == (1, f"error: {reason}")


def test_buffers_are_refused_where_they_were_not_lent(served: Path) -> None:
    with channel_to(served) as channel:
        channel.send(Prefill(request_id=1, length=3))
        assert channel.receive() == Failed(
            request_id=1, kind="request", error="this client does not hold the shared buffers"
        )
