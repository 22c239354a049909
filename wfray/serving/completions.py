"""One HTTP request for completions: its choices are made side by side, and sent whole or as server-sent events.

A stream's first piece is awaited before its headers are sent, so that a request that cannot be answered fails with a status code and not
inside a stream. A client that goes away ends the making of its answers, whole ones too.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from functools import reduce
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from wfray.serving.backend import Pieces
from wfray.serving.engine import Counts, Piece, join
from wfray.serving.errors import CLIENT_GONE, ApiError, as_api_error
from wfray.serving.gate import Gate
from wfray.serving.schema import MAX_CHOICES, ChatRequest, CompletionRequest
from wfray.serving.shapes import Json, Shape, usage

T = TypeVar("T")
Numbered = tuple[int, Piece]
NumberedPieces = AsyncGenerator[Numbered, None]


class Completion:
    """See the module docstring."""

    def __init__(self, gate: Gate, wanted: ChatRequest | CompletionRequest, shape: Shape) -> None:
        """Prepare to answer `wanted` through `gate`; raises `ApiError` when it wants too many choices."""
        self.gate, self.wanted, self.shape = gate, wanted, shape
        self.requests = wanted.requests()
        if len(self.requests) > MAX_CHOICES:
            raise ApiError(400, f"{len(self.requests)} answers are more than {MAX_CHOICES}: send fewer prompts", "invalid_request_error")
        self.head: Json = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model}

    async def answer(self, http: Request) -> Response:
        """Make the answers.

        Raises:
            Overloaded: there is no room.
            ValueError, DeadlinePassed, EngineLost: see `Gate.stream`.
        """
        if not self.wanted.stream:
            return await unless_gone(http, self.whole())
        pieces = self.pieces()
        first = await unless_gone(http, first_of(pieces))
        return StreamingResponse(self.events(first, pieces), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def whole(self) -> Response:
        """All choices in one body."""
        with self.gate.room(len(self.requests)):
            answers = await gathered([self.gate.whole(request) for request in self.requests])
        joined = [reduce(join, pieces) for pieces in answers]  # type: ignore[arg-type]
        is_scored = self.requests[0].num_logprobs is not None
        choices = [self.shape.choice(index, piece, is_scored) for index, piece in enumerate(joined)]
        return JSONResponse({**self.head, "object": self.shape.object, "choices": choices, "usage": self.usage([p.counts for p in joined])})

    async def pieces(self) -> NumberedPieces:
        """Pieces of all choices as they come."""
        with self.gate.room(len(self.requests)):
            async with aclosing(merged([self.gate.stream(request) for request in self.requests])) as pieces:
                async for numbered in pieces:
                    yield numbered

    async def events(self, first: Numbered, rest: NumberedPieces) -> AsyncIterator[str]:
        """The server-sent events; one with the error where the answer fails on its way."""
        sent: dict[int, int] = {}
        counts: dict[int, Counts | None] = {}
        async with aclosing(rest):
            index, piece = first
            while True:
                choice = self.shape.chunk(index, piece, sent.get(index))
                sent[index] = sent.get(index, 0) + len(piece.text)
                counts[index] = piece.counts
                yield self.event(choices=[choice])
                try:
                    index, piece = await anext(rest)
                except StopAsyncIteration:
                    break
                except Exception as error:
                    yield as_api_error(error).event()
                    return
        if self.wanted.wants_usage:
            yield self.event(choices=[], usage=self.usage([counts[index] for index in sorted(counts)]))
        yield "data: [DONE]\n\n"

    def event(self, **body: object) -> str:
        """One server-sent event."""
        return f"data: {json.dumps({**self.head, 'object': self.shape.chunk_object, **body}, ensure_ascii=False)}\n\n"

    def usage(self, counts: list[Counts | None]) -> Json:
        """Of finished answers."""
        return usage([count for count in counts if count is not None], self.wanted.n)


async def unless_gone(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it when the client disconnects."""
    working, going = asyncio.create_task(work), asyncio.create_task(gone(http))
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(CLIENT_GONE, "the client has gone", "invalid_request_error")
    finally:
        for task in (working, going):
            task.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


async def first_of(pieces: NumberedPieces) -> Numbered:
    """The first one."""
    return await anext(pieces)


async def gone(http: Request) -> None:
    """Wait until the client disconnects."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def gathered(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first error cancels the others."""
    async with Group() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]


class Group(asyncio.TaskGroup):
    """A task group that raises its first error by itself, not in a group."""

    async def __aexit__(self, *exception: object) -> None:
        """See `asyncio.TaskGroup`."""
        try:
            await super().__aexit__(*exception)  # type: ignore[arg-type]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


async def merged(streams: list[Pieces]) -> NumberedPieces:
    """Pieces of several answers as they come, each with the number of its answer."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    ready: asyncio.Queue[Numbered] = asyncio.Queue(maxsize=1)

    async def pump(index: int, stream: Pieces) -> None:
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                await ready.put((index, piece))

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    everything = asyncio.gather(*tasks)
    try:
        while not (everything.done() and ready.empty()):
            getting = asyncio.ensure_future(ready.get())
            both: list[asyncio.Future[Any]] = [getting, everything]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            # An error comes before a piece that came with it: in the first moment it is then a status and not an event.
            has_failed = everything.done() and everything.exception() is not None
            if getting.done() and not has_failed:
                yield getting.result()
                continue
            getting.cancel()
            if has_failed:
                break
        everything.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
