"""One life of an engine that is an OpenAI-compatible server by itself (vllm, sglang, bitnet.cpp), on loopback.

Requests go to it in OpenAI's own terms and its answers are read into pieces, so that clients see the same API, errors and limits whichever
engine it is. The server is a child in a process group of its own and gets SIGTERM when the replica dies.
"""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import aiohttp

from wfray.runs.children import die_with_parent, free_port
from wfray.serving.backend import EngineLost, Pieces
from wfray.serving.engine import Counts, FinishReason, Piece, Request
from wfray.serving.openai_pieces import body_of, counts_of, piece_of
from wfray.serving.servers import ServerLaunch

START_SECONDS = 600
STOP_SECONDS = 20
POLL_SECONDS = 0.5


class ServerProcess:
    """A running server; implements `Life`."""

    def __init__(self, process: subprocess.Popen[bytes], session: aiohttp.ClientSession, slots: int) -> None:
        self.process, self.session, self.slots, self.pid = process, session, slots, process.pid
        self.ended = asyncio.create_task(self._wait())

    @classmethod
    async def start(cls, launch: ServerLaunch, slots: int) -> "ServerProcess":
        """Start a server and wait until it is healthy.

        Raises:
            ValueError: its program cannot be run.
            EngineLost: it ended, or is not healthy in time.
        """
        port = free_port()
        session = aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(total=None))
        try:
            process = subprocess.Popen(
                [*launch.command, "--port", str(port)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **launch.environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            await session.close()
            raise ValueError(f"cannot run {launch.command[0]!r}: {error}") from None
        server = cls(process, session, slots)
        try:
            await server.wait_until_healthy()
        except BaseException:
            await server.close()
            raise
        return server

    async def wait_until_healthy(self) -> None:
        """Ask /health until it says so; raises `EngineLost`."""
        for _ in range(int(START_SECONDS / POLL_SECONDS)):
            if self.ended.done():
                raise EngineLost(f"the server ended with code {self.process.returncode} while it was starting")
            try:
                async with self.session.get("/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # It does not listen yet.
            await asyncio.sleep(POLL_SECONDS)
        raise EngineLost(f"the server is not healthy after {START_SECONDS} s")

    async def generate(self, request: Request) -> Pieces:
        """See `Backend.generate`."""
        path, body = body_of(request)
        try:
            async with self.session.post(path, json=body) as response:
                await check(response)
                async with aclosing(whole(response) if request.echo else streamed(response)) as pieces:
                    async for piece in pieces:
                        yield piece
        except aiohttp.ClientError as error:
            # Where the server is dying, its end is to be known before anybody asks again.
            await asyncio.wait([self.ended], timeout=2 * POLL_SECONDS)
            raise EngineLost(f"the server died while it made this answer ({type(error).__name__})") from None

    def silent_seconds(self) -> float:
        """See `Life.silent_seconds`: nothing is known of the steps of a server."""
        return 0.0

    def kill(self) -> None:
        """See `Life.kill`."""
        os.killpg(self.process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """See `Life.close`."""
        await self.session.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            await asyncio.wait([self.ended], timeout=STOP_SECONDS)
        if self.process.poll() is None:
            self.kill()
        await self.ended

    async def _wait(self) -> None:
        while self.process.poll() is None:
            await asyncio.sleep(POLL_SECONDS)


async def check(response: aiohttp.ClientResponse) -> None:
    """Raise what a refusal says: `ValueError` where the request is at fault."""
    if response.status == 200:
        return
    text = await response.text()
    try:
        found = json.loads(text)
        message = found.get("error", found).get("message", text)
    except (ValueError, AttributeError):
        message = text
    if 400 <= response.status < 500:
        raise ValueError(message)
    raise EngineLost(f"the server answered {response.status}: {message[:300]}")


async def whole(response: aiohttp.ClientResponse) -> AsyncGenerator[Piece, None]:
    """An answer that comes in one body."""
    body = await response.json()
    yield piece_of(body["choices"][0]).model_copy(update={"counts": counts_of(body["usage"])})


async def streamed(response: aiohttp.ClientResponse) -> AsyncGenerator[Piece, None]:
    """An answer that comes as server-sent events; the last piece waits for the usage, which comes after it."""
    reason: FinishReason | None = None
    counts: Counts | None = None
    async for event in events(response):
        counts = counts_of(event["usage"]) if event.get("usage") else counts
        for choice in event["choices"]:
            piece = piece_of(choice)
            reason = piece.finish_reason or reason
            if piece.text:
                yield piece.model_copy(update={"finish_reason": None})
    if reason is None or counts is None:
        raise EngineLost("the server ended an answer without saying why")
    yield Piece(text="", num_tokens=0, finish_reason=reason, counts=counts)


async def events(response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON bodies of server-sent events, up to `[DONE]`."""
    async for line in response.content:
        data = line.decode().strip().removeprefix("data: ")
        if data == "[DONE]":
            return
        if data.startswith("{"):
            yield json.loads(data)
