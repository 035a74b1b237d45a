"""Who holds the engine and who waits for it, in the order of their arrival."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hybridgraph.contract import Request
from hybridgraph.serving.ipc.connections import Connection
from hybridgraph.serving.ipc.messages import Queued


@dataclass(eq=False, kw_only=True)
class Job:
    """A request that waits for the engine or holds it."""

    connection: Connection
    request_id: int  # the client's own
    request: Request | None  # None: the buffers
    told_ahead: int = 0  # the position its client knows
    cancelled: bool = False

    def is_of(self, connection: Connection, request_id: int) -> bool:
        return self.connection is connection and self.request_id == request_id

    def queued(self, ahead: int) -> Queued:
        return Queued(request_id=self.request_id, position=ahead)


class Line:
    """One holder and a queue; ``tell(job, ahead)`` is called whenever a job's position has changed."""

    def __init__(self, tell: Callable[[Job, int], None]) -> None:
        self.holder: Job | None = None
        self._tell = tell
        self._reminded_s = time.perf_counter()
        self._waiting: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def num_of(self, connection: Connection) -> int:
        """How many requests of one client wait."""
        return sum(job.connection is connection for job in self._waiting)

    def append(self, job: Job) -> None:
        self._waiting.append(job)
        self._tell_positions()

    def next(self) -> Job | None:
        """Make the first in line the holder."""
        if not self._waiting:
            return None
        self.holder = self._waiting.popleft()
        if self._waiting:
            self._tell_positions()
        return self.holder

    def take_out(self, connection: Connection, request_id: int) -> Job | None:
        """Remove one waiting request; None where it does not wait."""
        for job in self._waiting:
            if job.is_of(connection, request_id):
                self._waiting.remove(job)
                self._tell_positions()
                return job
        return None

    def forget(self, connection: Connection) -> None:
        """A client is gone: nothing of it waits any longer."""
        if self.num_of(connection):
            self._waiting = deque(job for job in self._waiting if job.connection is not connection)
            self._tell_positions()

    def clear(self) -> list[Job]:
        """Remove and return everyone who waits."""
        left = list(self._waiting)
        self._waiting.clear()
        return left

    def remind(self, every_s: float) -> None:
        """Tell everyone who waits of their position again, ``every_s`` after the last time or the line's beginning."""
        now_s = time.perf_counter()
        if not self._waiting:
            self._reminded_s = now_s
        elif now_s > self._reminded_s + every_s:
            self._reminded_s = now_s
            for job in self._waiting:
                job.told_ahead = 0
            self._tell_positions()

    def _tell_positions(self) -> None:
        waiting = self._waiting
        for ahead, job in enumerate(waiting, 1 if self.holder else 0):
            if ahead != job.told_ahead:
                job.told_ahead = ahead
                self._tell(job, ahead)
            if self._waiting is not waiting:
                return  # telling found a client gone, and the others have been told of it
