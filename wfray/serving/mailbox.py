"""Pieces of one answer on their way from its engine to whoever reads it, in one event loop.

The first and the last piece wake the reader at once. In between he is woken at most every `interval()` seconds and reads what has come
meanwhile as one piece: an HTTP chunk costs as much as computing a token of a small model, so that sending each one by itself would take
the processor away from the engine. The interval grows with the answers under way (`spread`), so that their chunks together stay as many.
"""

import asyncio
from collections.abc import Callable

from wfray.serving.engine import Piece, join

MAX_SPREAD_SECONDS = 0.25


def spread(flush_seconds: float, num_answers: int) -> float:
    """The interval of each of so many answers side by side: one piece of all every `flush_seconds`, up to a time that readers notice."""
    return min(flush_seconds * num_answers, max(flush_seconds, MAX_SPREAD_SECONDS))


class Mailbox:
    """See the module docstring."""

    def __init__(self, interval: Callable[[], float]) -> None:
        self.interval, self.woken = interval, asyncio.Event()
        self.held: Piece | None = None
        self.error: BaseException | None = None
        self.read_at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def put(self, piece: Piece) -> None:
        """Leave a piece."""
        self.held = join(self.held, piece)
        loop = asyncio.get_running_loop()
        if piece.finish_reason or loop.time() >= (due := self.read_at + self.interval()):
            self.woken.set()
        elif self.timer is None:
            self.timer = loop.call_at(due, self.woken.set)

    def fail(self, error: BaseException) -> None:
        """Raise an error at the reader, after what was left before."""
        self.error = error
        self.woken.set()

    async def get(self) -> Piece:
        """What has come."""
        await self.woken.wait()
        self.woken.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.read_at = asyncio.get_running_loop().time()
        piece, self.held = self.held, None
        if piece is not None:
            if self.error is not None:
                self.woken.set()
            return piece
        assert self.error is not None
        raise self.error
