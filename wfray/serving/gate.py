"""What stands in front of a backend: room for a bounded number of requests, a deadline for each, one more try when the engine dies.

A request that finds no room is told when to come back, from how long answers took lately. One whose engine dies is asked again, once,
as long as nothing of its answer has been sent.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

from wfray.serving.backend import Backend, EngineLost, Pieces
from wfray.serving.engine import Piece, Request
from wfray.serving.meter import Meter

MAX_RETRY_AFTER_SECONDS = 60
TRIES = 2


class Overloaded(Exception):
    """There is no room; `retry_after` seconds from now there may be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests wait for this model: try again in {retry_after} s")
        self.retry_after = retry_after


class DeadlinePassed(Exception):
    """The answer took too long."""


class Gate:
    """See the module docstring."""

    def __init__(self, backend: Backend, max_queued: int, deadline_seconds: float, meter: Meter) -> None:
        """Guard `backend`.

        Args:
            backend: a started one.
            max_queued: requests that may wait beside those in its slots.
            deadline_seconds: of a request, from its arrival to the end of its answer.
            meter: counts what happens.
        """
        self.backend, self.max_queued, self.deadline_seconds, self.meter = backend, max_queued, deadline_seconds, meter
        self.inside = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.durations: deque[float] = deque([1.0], maxlen=32)

    @contextmanager
    def room(self, count: int) -> Iterator[None]:
        """Room for `count` answers.

        Raises:
            ValueError: there can never be room for so many.
            Overloaded: there is none now.
        """
        most = self.backend.slots + self.max_queued
        if count > most:
            raise ValueError(f"{count} answers at once are more than this model takes, {most}: send fewer prompts or a smaller n")
        if self.inside + count > most:
            self.meter.rejected.inc()
            raise Overloaded(self.retry_after())
        self._move(count)
        try:
            yield
        finally:
            self._move(-count)

    def _move(self, count: int) -> None:
        self.inside += count
        self.meter.inside.set(self.inside)
        if self.inside:
            self.idle.clear()
        else:
            self.idle.set()

    def retry_after(self) -> int:
        """Whole seconds until a slot may be free for one more."""
        mean = sum(self.durations) / len(self.durations)
        waits = mean * (self.inside - self.backend.slots + 1) / self.backend.slots
        return max(1, min(MAX_RETRY_AFTER_SECONDS, math.ceil(waits)))

    async def stream(self, request: Request) -> Pieces:
        """Pieces of an answer as they come; room has been taken for it.

        Raises:
            ValueError: the request cannot be answered.
            DeadlinePassed: it took too long.
            EngineLost: the engine died after a piece was sent, or died again.
        """
        begun, sent = time.monotonic(), False
        for last_try in (False, True):
            try:
                async with aclosing(self._pieces(request, begun)) as pieces:
                    async for piece in pieces:
                        sent = True
                        yield piece
                return
            except EngineLost:
                self.meter.lost.inc()
                if sent or last_try:
                    raise

    async def whole(self, request: Request) -> list[Piece]:
        """All pieces of an answer; see `stream`."""
        begun = time.monotonic()
        for last_try in (False, True):
            try:
                return [piece async for piece in self._pieces(request, begun)]
            except EngineLost:
                self.meter.lost.inc()
                if last_try:
                    raise
        raise AssertionError

    async def _pieces(self, request: Request, begun: float) -> Pieces:
        deadline, last = begun + self.deadline_seconds, None
        async with aclosing(self.backend.generate(request)) as pieces:
            while True:
                try:
                    piece = await asyncio.wait_for(anext(pieces), deadline - time.monotonic())
                except TimeoutError:
                    self.meter.late.inc()
                    raise DeadlinePassed(f"no whole answer within {self.deadline_seconds:g} s") from None
                last = self.meter.piece(piece, begun, last)
                yield piece
                if piece.finish_reason:
                    self.durations.append(time.monotonic() - begun)
                    return
