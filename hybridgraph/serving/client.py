"""A running generator as a source of tokens.

with closing(GeneratorClient.connect(path, script="case4_jit_cuda_generator.py")) as source:
    report = source.stream(Request(prompt_ids=[1, 2, 3], max_new_tokens=8), print)
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hybridgraph.contract import Report, Request, SourceInfo
from hybridgraph.errors import UserError
from hybridgraph.serving.facts import require_json, require_usable
from hybridgraph.serving.ipc.channel import ClientChannel, GeneratorGone
from hybridgraph.serving.ipc.messages import (
    HELLO,
    Cancel,
    Done,
    Failed,
    FailureKind,
    Generate,
    GetStats,
    Heartbeat,
    Progress,
    ProtocolError,
    Queued,
    Ready,
    Stats,
    ToClient,
    Token,
    ToServer,
)
from hybridgraph.system.console import OnProgress, no_op

# What a generator may say nothing for, several times what lies between two of its heartbeats. While it starts, a driver
# that does too, or a library on a slow disk, can keep all of its threads from running.
TIMEOUT_S = 25.0
STARTING_TIMEOUT_S = 60.0

OnQueued = Callable[[int], None]  # how many requests are ahead

_Reply = TypeVar("_Reply", bound=ToClient)


class RequestFailed(UserError):
    """The generator refused or gave up a request: ``reason``, in its own words; ``kind`` says on whose account."""

    def __init__(self, where: str, reason: str, kind: FailureKind) -> None:
        super().__init__(where + reason)
        self.reason = reason
        self.kind: FailureKind = kind


class GeneratorLost(UserError):
    """The generator ended while something was still asked of it."""


class GeneratorSilent(UserError):
    """The generator gives no sign of life: it hangs, is stopped, or is none. It may not heed SIGTERM either."""


class GeneratorLink:
    """A connection to a generator that is ready; every way in which it can end is one UserError."""

    def __init__(self, path: Path, channel: ClientChannel, on_queued: OnQueued) -> None:
        self.path = path
        self.channel = channel
        self._on_queued = on_queued

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        script: str,
        timeout_s: float,
        starting_timeout_s: float,
        on_progress: OnProgress,
        on_queued: OnQueued,
    ) -> tuple[GeneratorLink, Ready]:
        """Connect, and wait until the generator is ready; raises UserError."""
        link = cls(path, _connected(path, script, starting_timeout_s), on_queued)
        try:
            link.send(HELLO)
            ready = link.wait_for(Ready, on_progress=on_progress)
            require_usable(ready.info, f"the generator at {path}")
            link.channel.set_timeout(timeout_s)
            return link, ready
        except BaseException:
            link.channel.close()
            raise

    def send(self, message: ToServer) -> None:
        # Where the generator has gone, what it said last is still to be received, and says more.
        try:
            with suppress(GeneratorGone):
                self.channel.send(message)
        except (TimeoutError, ProtocolError) as error:
            raise self.fault(error) from None
        except (TypeError, OverflowError) as error:
            raise UserError(f"no request: {error}") from None

    def receive(self, *, descriptors: list[int] | None = None) -> ToClient:
        """Return the next message that is no heartbeat; ``descriptors``: see ``ClientChannel.receive``."""
        try:
            while isinstance(message := self.channel.receive(descriptors=descriptors), Heartbeat):
                pass
            return message
        except (GeneratorGone, TimeoutError, ProtocolError) as error:
            raise self.fault(error) from None

    def wait_for(
        self,
        kind: type[_Reply],
        *,
        request_id: int | None = None,
        on_progress: OnProgress = no_op,
        descriptors: list[int] | None = None,
    ) -> _Reply:
        """The next message of type ``kind``; raises UserError where ``request_id`` or the connection failed instead."""
        while True:
            message = self.receive(descriptors=descriptors)
            if isinstance(message, kind) and _is_of(message, request_id):
                return message
            if isinstance(message, Progress):
                on_progress(message.stage, message.done, message.total)
            self.heed(message, request_id)

    def stats(self) -> dict[str, Any]:
        """Return the generator's counters and costs so far, as JSON values."""
        self.send(GetStats())
        values = self.wait_for(Stats).values
        require_json(values, f"the generator at {self.path}: its counters")
        return values

    def heed(self, message: ToClient, request_id: int | None) -> None:
        """React to what is no answer: raises RequestFailed where ``request_id`` or the connection failed."""
        if isinstance(message, Queued):
            if message.request_id == request_id:
                self._on_queued(message.position)
        elif isinstance(message, Failed) and message.request_id in (None, request_id):
            ours = message.kind == "request" and message.request_id is not None
            what = " could not start" if message.kind == "start" else ""
            raise RequestFailed("" if ours else f"the generator at {self.path}{what}: ", message.error, message.kind)

    def fault(self, error: Exception) -> UserError:
        """What a user is told of the end of a connection."""
        if isinstance(error, GeneratorGone):
            return GeneratorLost(f"the generator at {self.path} is gone")
        if isinstance(error, TimeoutError):
            return _silent(self.path, self.channel.timeout_s)
        return UserError(f"the generator at {self.path}: {error}")


def _connected(path: Path, script: str, timeout_s: float) -> ClientChannel:
    """A connection to whatever listens at ``path``; raises UserError where nothing does."""
    command, elsewhere = (f"python {script} --socket {quoted}" for quoted in (shlex.quote(str(path)), "PATH"))
    try:
        return ClientChannel.connect(path, timeout_s=timeout_s)
    except FileNotFoundError:
        raise UserError(f"no generator at {path}: start one with: {command}") from None
    except ConnectionRefusedError:
        if not path.is_socket():
            raise UserError(f"{path} is no socket: start a generator at another path with: {elsewhere}") from None
        raise UserError(f"nobody serves {path} any longer: start a generator with: {command}") from None
    except BlockingIOError:  # others wait at its door already
        raise _silent(path, timeout_s) from None
    except OSError as error:
        raise UserError(f"{path} cannot be connected to: {error.strerror or error}") from None


def _silent(path: Path, timeout_s: float) -> GeneratorSilent:
    return GeneratorSilent(f"the generator at {path} has said nothing for {timeout_s:g} s: it hangs, or was stopped")


def _is_of(message: ToClient, request_id: int | None) -> bool:
    """Whether it belongs to the request, or to none: a reply to one that was given up may still be on its way."""
    return getattr(message, "request_id", request_id) == request_id


class GeneratorClient:
    """A ``TokenSource`` whose engine is a generator's. Not for several threads, ``cancel`` excepted."""

    def __init__(self, link: GeneratorLink, ready: Ready) -> None:
        self._link = link
        self._ready = ready
        self._request_id = 0  # of the last one sent
        self._sending = threading.Lock()  # a cancel from another thread is sent after what it cancels

    @classmethod
    def connect(
        cls,
        path: Path,
        *,
        script: str,
        timeout_s: float = TIMEOUT_S,
        starting_timeout_s: float = STARTING_TIMEOUT_S,
        on_progress: OnProgress = no_op,
        on_queued: OnQueued = no_op,
    ) -> GeneratorClient:
        """Wait until the generator at ``path`` is ready, with its progress in ``on_progress``.

        ``script`` is named to the user where there is no generator. Raises UserError, then and later, where there is
        none any more, or it gives no sign of life: for ``starting_timeout_s``, once it is ready for ``timeout_s``.
        """
        opened = GeneratorLink.open(
            path,
            script=script,
            timeout_s=timeout_s,
            starting_timeout_s=starting_timeout_s,
            on_progress=on_progress,
            on_queued=on_queued,
        )
        return cls(*opened)

    @property
    def info(self) -> SourceInfo:
        return self._ready.info

    def stream(self, request: Request, emit: Callable[[int], None]) -> Report:
        """Answer ``request``; raises RequestFailed, or UserError where the generator is gone."""
        request_id = self._request_id + 1
        with self._sending:
            self._link.send(Generate(request_id=request_id, request=request))
            self._request_id = request_id
        try:
            return self._receive_answer(request_id, emit, request.max_new_tokens)
        except RequestFailed:
            raise
        except BaseException:  # the caller's: what the generator still does for it is wasted
            with suppress(UserError):
                self.cancel()
            raise

    def _receive_answer(self, request_id: int, emit: Callable[[int], None], num_tokens: int) -> Report:
        while True:
            message = self._link.receive()
            if not isinstance(message, (Token, Done)):
                self._link.heed(message, request_id)
            elif message.request_id != request_id:
                continue  # the rest of an answer that was given up
            elif isinstance(message, Token):
                emit(message.id)
                if (num_tokens := num_tokens - 1) < 0:
                    raise UserError(f"the generator at {self._link.path} sends more tokens than were asked for")
            else:
                return message.report

    def cancel(self) -> None:
        """Give up the request in flight, if any: its ``stream`` raises RequestFailed("cancelled")."""
        with self._sending:
            self._link.send(Cancel(request_id=self._request_id))

    def stats(self) -> dict[str, Any]:
        return self._link.stats()

    def close(self) -> None:
        """Close the connection; the generator goes on."""
        self._link.channel.close()
