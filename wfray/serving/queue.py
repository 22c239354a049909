"""A queue in front of an engine: one thread of its own runs it, requests wait in order, an asyncio loop reads the pieces."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from wfray.serving.engine import Engine, Piece, Sampling

END = None


class EngineQueue:
    """Makes a blocking, single-request engine usable from an event loop that it never blocks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def tokenize(self, text: str) -> list[int]:
        """See `Engine.tokenize`."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.engine.tokenize, text)

    async def render_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """See `Engine.render_chat`."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.engine.render_chat, messages)

    async def generate(self, prompt: list[int], sampling: Sampling) -> AsyncIterator[Piece]:
        """Pieces as they come; closing the iterator (a client that went away) ends the generation after the current token."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        abandoned = threading.Event()

        def run() -> None:
            try:
                for piece in () if abandoned.is_set() else self.engine.generate(prompt, sampling):
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)
                    if abandoned.is_set():
                        return
            finally:
                loop.call_soon_threadsafe(pieces.put_nowait, END)

        work = loop.run_in_executor(self.thread, run)
        try:
            while (piece := await pieces.get()) is not END:
                yield piece
            await work
        finally:
            abandoned.set()

    def close(self) -> None:
        """Wait for the current token, then free the model."""
        self.thread.submit(self.engine.close)
        self.thread.shutdown(wait=True)
