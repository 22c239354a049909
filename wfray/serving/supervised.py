"""A backend whose engine runs in a process, which is started again whenever it ends.

Answers that were under way raise `EngineLost`; requests that come while the process starts wait for it. A process that owes a word for
longer than `stall_seconds` is killed. When several starts in a row fail, the backend is unhealthy, and whoever runs the replica
replaces it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from wfray.serving.backend import EngineLost, Pieces
from wfray.serving.engine import Request

CHECK_SECONDS = 1.0
WAIT_SECONDS = 0.02
MAX_FAILED_STARTS = 5


class Life(Protocol):
    """One life of an engine's process."""

    slots: int
    pid: int
    ended: asyncio.Task[None]
    """Done when the process has ended and its answers are lost."""

    def generate(self, request: Request) -> Pieces:
        """See `Backend.generate`."""

    def silent_seconds(self) -> float:
        """For how long it has owed a word."""

    def kill(self) -> None:
        """End it the hard way; `ended` follows."""

    async def close(self) -> None:
        """End it."""


class SupervisedBackend:
    """See the module docstring; implements `Backend`."""

    def __init__(self, begin: Callable[[], Awaitable[Life]], stall_seconds: float) -> None:
        """Supervise what `begin` starts; it raises `ValueError` for a user's mistake and `EngineLost` when the process ends."""
        self.begin, self.stall_seconds = begin, stall_seconds
        self.alive, self.restarts, self.slots, self.trouble = asyncio.Event(), 0, 1, ""

    async def start(self) -> None:
        """See `Backend.start`."""
        try:
            self.life = await self.begin()
        except EngineLost as error:
            raise ValueError(f"{error}: see its log") from None
        self.slots = self.life.slots
        self.alive.set()
        self.supervising = asyncio.create_task(self._supervise())

    async def generate(self, request: Request) -> Pieces:
        """See `Backend.generate`."""
        life = await self._living()
        async with aclosing(life.generate(request)) as pieces:
            async for piece in pieces:
                yield piece

    def check_health(self) -> None:
        """See `Backend.check_health`."""
        if self.trouble:
            raise RuntimeError(self.trouble)

    async def close(self) -> None:
        """See `Backend.close`."""
        self.supervising.cancel()
        self.trouble = "the model has been replaced or taken down"
        await self.life.close()

    async def _living(self) -> Life:
        """The process, once there is one; also where it has ended and its end has not been dealt with yet."""
        while not self.alive.is_set() or self.life.ended.done():
            if self.trouble:
                raise EngineLost(self.trouble)
            await asyncio.sleep(WAIT_SECONDS)
        return self.life

    async def _supervise(self) -> None:
        while True:
            await asyncio.wait([self.life.ended], timeout=CHECK_SECONDS)
            if self.life.ended.done():
                self.alive.clear()
                self.restarts += 1
                await self._start_again()
                self.alive.set()
            elif self.life.silent_seconds() > self.stall_seconds:
                self.life.kill()

    async def _start_again(self) -> None:
        for attempt in range(MAX_FAILED_STARTS):
            try:
                self.life = await self.begin()
                return
            except Exception as error:  # Whatever it was, those who wait must hear of it.
                reason = error
                await asyncio.sleep(2.0**attempt)
        self.trouble = f"the engine does not start again: {reason}"
        await asyncio.Event().wait()
