"""One life of an engine that is a server by itself (vllm, sglang, bitnet.cpp), on loopback.

Requests go to it in its own terms, its dialect, and its answers are read into pieces, so that clients see the same API, errors and limits
whichever engine it is. The server is a child in a process group of its own and gets SIGTERM when the replica dies.
"""

import asyncio
import os
import signal
import subprocess
from contextlib import aclosing

import aiohttp

from wfray.runs.children import die_with_parent, end_group, free_port
from wfray.serving.backend import EngineLost, Pieces
from wfray.serving.dialects import Dialect, check
from wfray.serving.engine import Request
from wfray.serving.servers import ServerLaunch

START_SECONDS = 600
STOP_SECONDS = 20
POLL_SECONDS = 0.5


class ServerProcess:
    """A running server; implements `Life`."""

    def __init__(self, process: subprocess.Popen[bytes], session: aiohttp.ClientSession, dialect: Dialect, slots: int) -> None:
        self.process, self.session, self.dialect, self.slots, self.pid = process, session, dialect, slots, process.pid
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
        server = cls(process, session, launch.dialect, slots)
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
        try:
            path, body = await self.dialect.ask(self.session, request)
            async with self.session.post(path, json=body) as response:
                await check(response)
                async with aclosing(self.dialect.read(response, request)) as pieces:
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
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            await asyncio.wait([self.ended], timeout=STOP_SECONDS)
        if self.process.poll() is None:
            self.kill()
        await self.ended

    async def _wait(self) -> None:
        while self.process.poll() is None:
            await asyncio.sleep(POLL_SECONDS)
        end_group(self.process.pid)
        await self.session.close()
