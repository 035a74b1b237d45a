"""Who waits for whom: turns go round the clients, each sees its position, and a Cancel ends what waits or runs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_clients import ask, assert_serves, channel_to, client_of, generate, receive_until, surviving_toy, toy
from toy_generator import LONG_CALL, SLOW, VOCAB_SIZE, toy_answer

from hybridgraph.cli.commands import refuse_to_wait
from hybridgraph.contract import Request
from hybridgraph.errors import UserError
from hybridgraph.serving.client import RequestFailed
from hybridgraph.serving.ipc.connections import Connection
from hybridgraph.serving.ipc.messages import (
    HELLO,
    Cancel,
    Done,
    Failed,
    GetStats,
    Heartbeat,
    Queued,
    Ready,
    Share,
    Stats,
    Token,
)
from hybridgraph.serving.queue import FairQueue, Job
from hybridgraph.serving.server import MAX_WAITING_IDS, MAX_WAITING_PER_CLIENT


@pytest.fixture(scope="module")
def served() -> Iterator[Path]:
    with surviving_toy() as path:
        yield path


class Client(Connection):
    """A key of the queue: it never sends."""

    def __init__(self) -> None:
        pass


def job(client: Client, number: int = 1) -> Job:
    return Job(connection=client, message=Share(request_id=number))


def test_queue_goes_round_the_clients() -> None:
    queue = FairQueue(lambda job, position: None)
    greedy, modest, late = Client(), Client(), Client()
    for number in range(4):
        queue.append(job(greedy, number))
    queue.append(job(modest, 10))
    served = [queue.next(), queue.next()]
    queue.append(job(late, 20))
    while (following := queue.next()) is not None:
        served.append(following)
    assert [job.request_id for job in served if job] == [0, 10, 1, 20, 2, 3]


def test_queue_tells_how_many_jobs_of_others_are_served_before() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(50):
        told: dict[Job, int] = {}
        queue = FairQueue(told.__setitem__)
        clients = [Client() for _ in range(draw.randrange(1, 6))]
        for _ in range(draw.randrange(8)):
            queue.append(job(draw.choice(clients)))
            if draw.random() < 0.3:
                queue.next()
        queue.append(last := job(draw.choice(clients)))
        position = told.get(last, 0)
        ahead = [queue.holder] if queue.holder else []
        while (following := queue.next()) is not last:
            assert following is not None
            ahead.append(following)
        assert position == sum(job.connection is not last.connection for job in ahead)


def test_queue_tells_the_first_job_of_each_client_whenever_its_position_changes() -> None:
    told: list[tuple[int, int]] = []
    queue = FairQueue(lambda job, position: told.append((job.request_id, position)))
    a, b, c = Client(), Client(), Client()
    for client, number in ((a, 1), (a, 2), (b, 3), (c, 4)):
        queue.append(job(client, number))
    assert told == [(3, 1), (4, 2)]
    told.clear()
    queue.next()
    assert told == [(2, 2)], "b and c are before its second turn"
    queue.forget(b)
    assert told[1:] == [(4, 1), (2, 1)]
    assert queue.remove(c, 5) is None
    assert queue.remove(c, 4) is not None
    assert told[3:] == [(2, 0)], "what is left ahead is its own"
    assert [job.request_id for job in queue.clear()] == [2] and queue.is_empty and not queue.is_free


def test_queue_that_finds_a_client_gone_while_telling_tells_no_old_positions() -> None:
    told: list[tuple[int, int]] = []

    def tell(job: Job, position: int) -> None:
        told.append((job.request_id, position))
        if job.connection is a:
            queue.forget(a)  # as where sending finds its connection closed

    queue = FairQueue(tell)
    a, b = Client(), Client()
    queue.append(job(Client(), 1))
    queue.append(job(a, 2))
    queue.append(job(b, 3))
    queue.next()
    assert told[-1] == (3, 1)
    assert queue.clients == [b]


def test_requests_that_wait_see_their_position(served: Path) -> None:
    with channel_to(served) as first, channel_to(served) as second, channel_to(served) as third:
        first.send(generate(1, [SLOW], 6))
        assert isinstance(first.receive(), Token)
        second.send(generate(1, [2]))
        assert second.receive() == Queued(request_id=1, position=1)
        third.send(generate(1, [3]))
        assert third.receive() == Queued(request_id=1, position=2)
        third.send(GetStats())
        stats = third.receive()
        assert isinstance(stats, Stats)
        assert stats.values["server"]["waiting"] == 2
        assert isinstance(receive_until(first, Done)[-1], Done)
        # The second is answered before the third is told that one less is ahead of it, or that none is.
        assert [type(m) for m in receive_until(second, Done)] == [Token, Done]
        assert third.receive() == Queued(request_id=1, position=1)
        assert [type(m) for m in receive_until(third, Done)] == [Token, Done]


def test_measuring_client_that_would_have_to_wait_is_refused(served: Path) -> None:
    with channel_to(served) as other, client_of(served, on_queued=refuse_to_wait) as measuring:
        assert measuring.stream(Request(prompt_ids=[5]), print).graph_path == "exact"
        other.send(generate(1, [SLOW], 6))
        assert isinstance(other.receive(), Token)
        with pytest.raises(UserError, match=r"^the generator answers others, whose requests are ahead \(1\)"):
            measuring.stream(Request(prompt_ids=[5]), print)
        assert isinstance(receive_until(other, Done)[-1], Done)
    assert_serves(served)


def test_client_that_asks_far_ahead_keeps_nobody_waiting(served: Path) -> None:
    with channel_to(served) as greedy, client_of(served) as honest:
        greedy.send(generate(1, [SLOW], 2))
        assert isinstance(greedy.receive(), Token)
        for number in range(2, 40):
            greedy.send(generate(number, [SLOW], 2))  # 0.1 s each
        assert ask(honest, [4]) == toy_answer([4], 1, 0)
        honest_stats = honest.stats()["server"]
        assert honest_stats["waiting"] >= 30, "it was answered before most of what came earlier"
        for number in range(2, 40):
            greedy.send(Cancel(request_id=number))


def test_client_that_asks_for_too_much_is_refused(served: Path) -> None:
    with channel_to(served) as channel:
        channel.send(generate(1, [SLOW], 50))
        assert isinstance(channel.receive(), Token), "it holds the engine, and the others wait"
        for number in range(2, MAX_WAITING_PER_CLIENT + 3):
            channel.send(generate(number, [SLOW], 50))
        failed = receive_until(channel, Failed)[-1]
        assert isinstance(failed, Failed)
        assert (failed.request_id, failed.kind) == (MAX_WAITING_PER_CLIENT + 2, "request")


def test_prompts_that_wait_for_the_engine_are_bounded() -> None:
    """Before the engine is there nobody knows how long a prompt may be, and each takes megabytes."""
    half = [1] * (MAX_WAITING_IDS // 2)
    with toy("--start-s", "30", ready=False) as generator, channel_to(generator.path, greet=False) as channel:
        channel.send(HELLO)
        for number in (1, 2, 3):
            channel.send(generate(number, half))
        failed = receive_until(channel, Failed)[-1]
        assert isinstance(failed, Failed) and failed.request_id == 3
        assert failed.error == f"with it more than {MAX_WAITING_IDS} prompt ids of this client would wait"


def test_request_that_cannot_be_answered_is_refused_before_its_turn(served: Path) -> None:
    with channel_to(served) as holder, channel_to(served) as waiting:
        holder.send(generate(1, [SLOW], 20))
        assert isinstance(holder.receive(), Token)
        waiting.send(generate(1, [VOCAB_SIZE]))
        refusal = waiting.receive()
        assert isinstance(refusal, Failed) and refusal.kind == "request"
        holder.send(Cancel(request_id=1))


def test_cancel_ends_the_answer_in_flight(served: Path) -> None:
    with client_of(served) as client:
        ids: list[int] = []

        def emit(token_id: int) -> None:
            ids.append(token_id)
            if len(ids) == 2:
                client.cancel()

        with pytest.raises(RequestFailed, match="was cancelled") as failure:
            client.stream(Request(prompt_ids=[SLOW], max_new_tokens=200), emit)
        assert failure.value.kind == "cancelled"
        assert len(ids) < 100
        assert ask(client, [4], 2) == toy_answer([4], 2, 0)


def test_cancel_ends_a_waiting_request(served: Path) -> None:
    with channel_to(served) as holder, channel_to(served) as waiting:
        holder.send(generate(1, [SLOW], 5))
        assert isinstance(holder.receive(), Token)
        waiting.send(generate(1, [2]))
        assert waiting.receive() == Queued(request_id=1, position=1)
        waiting.send(Cancel(request_id=99))  # of nobody: ignored
        waiting.send(Cancel(request_id=1))
        assert waiting.receive() == Failed(request_id=1, kind="cancelled", error="the request was cancelled")
        assert isinstance(receive_until(holder, Done)[-1], Done)


def test_exception_of_the_caller_cancels_the_answer(served: Path) -> None:
    def emit(token_id: int) -> None:
        raise ZeroDivisionError

    with client_of(served) as client:
        with pytest.raises(ZeroDivisionError):
            client.stream(Request(prompt_ids=[SLOW], max_new_tokens=200), emit)  # 10 s
        start_s = time.monotonic()
        assert ask(client, [4], 2) == toy_answer([4], 2, 0)
        assert time.monotonic() - start_s < 5.0


def test_client_that_leaves_mid_answer_frees_the_engine(served: Path) -> None:
    with channel_to(served) as leaving:
        leaving.send(generate(1, [SLOW], 200))  # 10 s
        assert isinstance(leaving.receive(), Token)
    start_s = time.monotonic()
    with client_of(served) as client:
        assert ask(client, [4]) == toy_answer([4], 1, 0)
        assert time.monotonic() - start_s < 5.0
        assert client.stats()["abandoned"] >= 1


def test_client_that_leaves_while_it_waits_is_forgotten(served: Path) -> None:
    with channel_to(served) as holder, channel_to(served) as last:
        holder.send(generate(1, [SLOW], 20))
        assert isinstance(holder.receive(), Token)
        with channel_to(served) as leaving:
            leaving.send(generate(1, [SLOW], 200))
            assert leaving.receive() == Queued(request_id=1, position=1)
            last.send(generate(1, [4]))
            assert last.receive() == Queued(request_id=1, position=2)
        assert last.receive() == Queued(request_id=1, position=1)
        holder.send(Cancel(request_id=1))
        assert [type(m) for m in receive_until(last, Done)] == [Token, Done]


def test_client_that_waits_hears_heartbeats() -> None:
    with toy("--beat", "0.1") as generator, channel_to(generator.path) as busy, channel_to(generator.path) as waiting:
        busy.send(generate(1, [SLOW], 10))
        assert isinstance(busy.receive(), Token)
        waiting.send(generate(1, [2]))
        replies = receive_until(waiting, Done)
        assert replies[0] == Queued(request_id=1, position=1)
        assert replies[1:3] == [Heartbeat()] * 2


def test_generator_in_a_long_call_gives_signs_of_life_and_lets_clients_in() -> None:
    """The engine does not return for three seconds: whoever waits, asks or comes meanwhile hears from its thread."""
    with toy("--beat", "0.2") as generator, channel_to(generator.path) as asking, channel_to(generator.path) as other:
        asking.send(generate(1, [LONG_CALL]))
        assert isinstance(asking.receive(), Heartbeat)
        with channel_to(generator.path, greet=False) as late:
            late.send(HELLO)
            assert isinstance(late.receive(), Ready)
            late.send(generate(1, [4]))
            assert late.receive() == Queued(request_id=1, position=1)
            other.send(GetStats())
            assert isinstance(asking.receive(), Heartbeat), "it all happened within the call"
            assert [type(m) for m in receive_until(asking, Token)[-1:]] == [Token]
            assert isinstance(receive_until(other, Stats)[-1], Stats), "the engine's counters wait for the engine"
            assert isinstance(receive_until(late, Done)[-1], Done)


def test_generator_that_starts_gives_signs_of_life_between_its_stages() -> None:
    with toy("--start-s", "3", "--silent-start", "--beat", "0.2", ready=False) as generator:
        with channel_to(generator.path, greet=False) as channel:
            channel.send(HELLO)
            received = receive_until(channel, Ready)
        assert sum(isinstance(message, Heartbeat) for message in received) >= 3


def test_client_that_comes_during_a_long_call_is_not_taken_for_a_silent_one() -> None:
    options = ("--start-s", "3", "--silent-start", "--beat", "1", "--hello-timeout", "0.5")
    with toy(*options, ready=False) as generator, channel_to(generator.path, greet=False) as channel:
        channel.send(HELLO)
        assert isinstance(receive_until(channel, Ready)[-1], Ready)
