"""Who holds the engine and who waits for it: requests of one client in their order, turns round the clients."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hybridgraph.serving.ipc.connections import Connection
from hybridgraph.serving.ipc.messages import DecodeStep, Finished, Generate, Prefill, Share


@dataclass(eq=False, kw_only=True)
class Job:
    """A request that waits for the engine or holds it."""

    connection: Connection
    message: Generate | Share | Prefill
    steps: deque[DecodeStep | Finished] = field(default_factory=deque)  # what followed a Prefill, not done yet
    begun_s: float = 0.0  # monotonic, when it became the holder
    worked_s: float = 0.0  # of that time, what the engine has worked
    told_position: int = 0  # the one its client knows
    cancelled: bool = False

    @property
    def request_id(self) -> int:
        """The client's own."""
        return self.message.request_id

    def is_of(self, connection: Connection, request_id: int) -> bool:
        return self.connection is connection and self.request_id == request_id

    @property
    def num_ids(self) -> int:
        """Prompt ids that are kept while it waits."""
        return len(self.message.request.prompt_ids) if isinstance(self.message, Generate) else 0


class FairQueue:
    """One holder, and a queue a client; the next holder is the first job of the client whose turn is the longest ago.

    ``tell(job, position)`` is called with the number of other clients' jobs ahead of one: when it comes and there are
    any, and then, for the first job of each client, whenever the number has changed.
    """

    def __init__(self, tell: Callable[[Job, int], None]) -> None:
        self.holder: Job | None = None
        self._tell = tell
        self._waiting: OrderedDict[Connection, deque[Job]] = OrderedDict()  # in the order of their turns
        self._num_changes = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    @property
    def is_free(self) -> bool:
        """Whether a job that comes now is the next holder."""
        return self.holder is None and self.is_empty

    @property
    def clients(self) -> list[Connection]:
        """Those of whom a job waits, in the order of their turns."""
        return list(self._waiting)

    def jobs_of(self, connection: Connection) -> list[Job]:
        """One client's waiting jobs, in their order."""
        return list(self._waiting.get(connection, ()))

    def append(self, job: Job) -> None:
        """Add ``job`` behind the others of its client."""
        position = self._position_of_next(job.connection)
        self._waiting.setdefault(job.connection, deque()).append(job)
        self._num_changes += 1
        if position:
            job.told_position = position
            self._tell(job, position)

    def next(self) -> Job | None:
        """Make the first job of the next client the holder; returns None where nobody waits."""
        if not self._waiting:
            return None
        connection, jobs = self._waiting.popitem(last=False)
        self.holder = jobs.popleft()
        if jobs:
            self._waiting[connection] = jobs
        self._tell_first_jobs()
        return self.holder

    def remove(self, connection: Connection, request_id: int) -> Job | None:
        """Remove one waiting job; returns None where it does not wait."""
        for job in self.jobs_of(connection):
            if job.request_id == request_id:
                self._waiting[connection].remove(job)
                if not self._waiting[connection]:
                    del self._waiting[connection]
                self._tell_first_jobs()
                return job
        return None

    def forget(self, connection: Connection) -> None:
        """Remove every waiting job of a client that is gone."""
        if self._waiting.pop(connection, None):
            self._tell_first_jobs()

    def clear(self) -> list[Job]:
        """Remove and return all that wait."""
        left = [job for jobs in self._waiting.values() for job in jobs]
        self._waiting.clear()
        return left

    def _position_of_next(self, connection: Connection) -> int:
        """How many jobs of others are ahead of one that this client adds now, in the order of turns as it stands."""
        own = len(self._waiting.get(connection, ()))
        position, is_before = self._num_held_by_others(connection), True
        for client, jobs in self._waiting.items():
            if client is connection:
                is_before = False
            else:  # as many as this client has turns before, and one where the other's turn is earlier
                position += min(len(jobs), own + is_before)
        return position

    def _num_held_by_others(self, connection: Connection) -> int:
        return int(self.holder is not None and self.holder.connection is not connection)

    def _tell_first_jobs(self) -> None:
        self._num_changes += 1
        change = self._num_changes
        for number, (connection, jobs) in enumerate(list(self._waiting.items())):
            position = number + self._num_held_by_others(connection)
            if position != jobs[0].told_position:
                jobs[0].told_position = position
                self._tell(jobs[0], position)
            if self._num_changes != change:
                return  # telling found a client gone, and the others have been told of it
