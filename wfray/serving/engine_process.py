"""The replica's side of an engine's process: one life of it, from start to end."""

import asyncio
import itertools
import logging
import socket
import subprocess
import sys

from wfray.serving.backend import EngineLost, Pieces
from wfray.serving.engine import Request
from wfray.serving.mailbox import Mailbox, spread
from wfray.serving.wire import Command, Launch, Ready, Report

logger = logging.getLogger(__name__)
LINE_BYTES = 1 << 28
"""A report with the scores of many prompts is long."""
STOP_SECONDS = 5.0


class EngineProcess:
    """A process with a loaded engine, which ends when the connection does; implements `Life`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ready: Ready,
        flush_seconds: float,
    ) -> None:
        self.process, self.reader, self.writer, self.flush_seconds = process, reader, writer, flush_seconds
        self.slots, self.pid = ready.slots, ready.pid
        self.numbers, self.mailboxes = itertools.count(), dict[int, Mailbox]()
        self.heard = asyncio.get_running_loop().time()
        """When it last said something or had nothing to say, on the loop's clock."""
        self.ended = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, launch: Launch, flush_seconds: float) -> "EngineProcess":
        """Start a process and wait until its engine is loaded.

        Args:
            launch: what it is to load.
            flush_seconds: see `ServeConfig`.

        Raises:
            ValueError: the engine refuses what it is to load.
            EngineLost: the process ended.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "wfray.serving.process", str(theirs.fileno())]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES)
        try:
            writer.write(launch.model_dump_json().encode() + b"\n")
            line = await reader.readline()
            if not line:
                raise EngineLost(f"the engine's process ended with code {await asyncio.to_thread(process.wait)} while it was loading")
            if b'"failed"' in line:
                raise ValueError(Report.model_validate_json(line).failed)
            return cls(process, reader, writer, Ready.model_validate_json(line), flush_seconds)
        except BaseException:
            writer.close()
            await stop(process)
            raise

    async def generate(self, request: Request) -> Pieces:
        """See `Backend.generate`."""
        number, mailbox = next(self.numbers), Mailbox(lambda: spread(self.flush_seconds, len(self.mailboxes)))
        if not self.mailboxes:
            self.heard = asyncio.get_running_loop().time()
        self.mailboxes[number] = mailbox
        try:
            self._send(Command(number=number, request=request))
            while True:
                piece = await mailbox.get()
                if piece.finish_reason:
                    del self.mailboxes[number]
                yield piece
                if piece.finish_reason:
                    return
        finally:
            if self.mailboxes.pop(number, None) is not None:
                self._send(Command(number=number))

    def silent_seconds(self) -> float:
        """See `Life.silent_seconds`."""
        return asyncio.get_running_loop().time() - self.heard if self.mailboxes else 0.0

    def kill(self) -> None:
        """See `Life.kill`."""
        self.process.kill()

    async def close(self) -> None:
        """See `Life.close`."""
        self.ended.cancel()
        self.writer.close()
        await stop(self.process)
        self._lose()

    def _send(self, command: Command) -> None:
        if self.ended.done():
            raise EngineLost("the engine's process has ended")
        self.writer.write(command.model_dump_json(exclude_none=True).encode() + b"\n")

    async def _read(self) -> None:
        """Hand out what comes until the process ends; one that cannot be understood is ended."""
        try:
            while line := await self.reader.readline():
                self.heard = asyncio.get_running_loop().time()
                self._hand_out(Report.model_validate_json(line))
        except ConnectionResetError:
            pass  # Killed with something unread in the socket.
        except ValueError:
            logger.exception("process %d says what cannot be read, and is ended", self.pid)
            self.process.kill()
        await asyncio.to_thread(self.process.wait)
        self._lose()

    def _hand_out(self, report: Report) -> None:
        for number, piece in report.pieces:
            if number in self.mailboxes:
                self.mailboxes[number].put(piece)
        for number, reason in report.refused.items():
            if mailbox := self.mailboxes.pop(number, None):
                mailbox.fail(ValueError(reason))

    def _lose(self) -> None:
        lost, self.mailboxes = self.mailboxes, {}
        for mailbox in lost.values():
            mailbox.fail(EngineLost("the engine's process died while it made this answer"))


async def stop(process: subprocess.Popen[bytes]) -> None:
    """Wait for an end that has been asked for; kill what does not end."""
    try:
        await asyncio.to_thread(process.wait, STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)
