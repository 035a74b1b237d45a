"""What a generator serves: an engine, and one whose buffers it may lend."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hybridgraph.records import Report, Request, SourceInfo

if TYPE_CHECKING:
    from torch import Tensor


class Engine(Protocol):
    """What is served. All calls come from the thread that called ``serve``."""

    @property
    def info(self) -> SourceInfo: ...

    @property
    def is_capturing(self) -> bool:
        """Whether a thread of its own needs the GIL."""
        ...

    @property
    def report(self) -> Report:
        """Of the last finished answer or prefill."""
        ...

    def check(self, request: Request) -> None:
        """Raise UserError for a request that cannot be answered."""
        ...

    def answer(self, request: Request) -> Generator[int, None, None]:
        """The ids of the answer, each when it exists; closing the iterator cancels it."""
        ...

    def require_usable(self) -> None:
        """Raise where a failed request has left a device that cannot be used any more."""
        ...

    def stats(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


@runtime_checkable
class SharingEngine(Protocol):
    """An engine whose static buffers a client may fill and read itself."""

    def shared_tensors(self) -> dict[str, Tensor]:
        """By the names of ``hybridgraph.ipc.buffers.SHARED_NAMES``."""
        ...

    def hold(self) -> AbstractContextManager[Any]:
        """Until it is left, nothing in the background touches cache and logits."""
        ...

    def forget_overflow(self) -> None:
        """At an answer's end, still held: nothing of it may spoil the next one."""
        ...

    def replay_prefill(self, length: int) -> Report:
        """Run a prompt of ``length`` ids; when it returns, the device has written the logits."""
        ...

    def replay_decode(self) -> None:
        """Run one step; when it returns, the device has written the logits."""
        ...
