"""One answer in progress, to whom its ids are handed: an ``emit`` that is called, or an iterator that is read."""

from __future__ import annotations

from hybridgraph.contract import Report, Request
from hybridgraph.engine.runner import Runner
from hybridgraph.errors import UserError


class Answer:
    """Holds the engine's lock from the launch of its prompt, when it is entered, to its end, when it is left.

    ``report`` is what is known of it from then on.
    """

    def __init__(self, runner: Runner, request: Request) -> None:
        self.in_progress = False
        self.report = Report()
        self._runner = runner
        self._request = request

    def __enter__(self) -> Answer:
        runner = self._runner
        runner.lock.acquire()
        try:
            self._plan = runner.launch_prompt(self._request)
        except BaseException:
            runner.lock.release()
            raise
        self._num_launched = 1
        self._awake = not runner.is_capturing  # else the capturing thread needs the GIL
        self.in_progress = True
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def id_at(self, step: int) -> int:
        """The ``step``-th id, as soon as it is there; steps are asked for in their order.

        Raises UserError where the answer was ended meanwhile.
        """
        if not self.in_progress:
            raise UserError("the answer was cancelled: the engine is closed")
        runner, request = self._runner, self._request
        while self._num_launched < min(step + 1 + runner.lookahead, request.max_new_tokens):
            runner.launch_decode(request, self._num_launched)
            self._num_launched += 1
        return runner.wait_for(step, awake=self._awake)

    def end(self) -> None:
        """Cancel what has not been read; nothing where the answer has ended."""
        if not self.in_progress:
            return
        self.in_progress = False
        try:
            self.report = self._runner.finish(self._request, self._plan, self._num_launched)
        finally:
            self._runner.lock.release()
