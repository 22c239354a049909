"""What the tests of this room share: engines run to the end, and a replica's application in this process."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn

from wfray.config.serve import ServeConfig
from wfray.runs.children import free_port
from wfray.serving.api import Access, build_app
from wfray.serving.engine import Engine, Piece, Request
from wfray.serving.host import Host, Hosting

T = TypeVar("T")
CONTEXT = 128
WEEK = [{"role": "user", "content": "How many days are in a week?"}]


def run_all(engine: Engine) -> dict[int, Piece]:
    """Work until nothing is left; each answer as one piece."""
    answers: dict[int, list[Piece]] = {}
    while engine.busy:
        for number, piece in engine.step():
            answers.setdefault(number, []).append(piece)
    return {number: joined(pieces) for number, pieces in answers.items()}


def joined(pieces: list[Piece]) -> Piece:
    """One answer."""
    text, num_tokens = "".join(piece.text for piece in pieces), sum(piece.num_tokens for piece in pieces)
    scores = [score for piece in pieces for score in piece.scores]
    return pieces[-1].model_copy(update={"text": text, "num_tokens": num_tokens, "scores": scores})


def answer(engine: Engine, request: Request) -> Piece:
    """The answer to one request."""
    engine.add(0, request)
    return run_all(engine)[0]


def hosting(model_file: Path, names: tuple[str, ...] = ("smol",), version: str = "1", **changes: Any) -> Hosting:
    """What a replica is told to serve."""
    settings = {"context": CONTEXT, "slots": 2, "threads": 1, **changes.pop("model", {})}
    models = [{"name": name, "file": "unused", **settings} for name in names]
    config = ServeConfig.parse({"run": "unused", "models": models, "flush_seconds": 0.0, **changes}, origin="test")
    return Hosting(config=config, files=dict.fromkeys(names, str(model_file)), versions=dict.fromkeys(names, version))


class Served:
    """A replica's application in this process: an HTTP client, and the host behind it."""

    def __init__(self, host: Host, client: httpx.AsyncClient) -> None:
        self.host, self.client = host, client

    async def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """POST JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(path, content=content, headers={"content-type": "application/json", **headers})

    async def complete(self, prompt: Any = "Once upon a time", **options: Any) -> httpx.Response:
        """POST /v1/completions."""
        return await self.post("/v1/completions", {"model": "smol", "prompt": prompt, "temperature": 0, "max_tokens": 8, **options})


class Replica:
    """A host with its models in an event loop of its own, in a thread."""

    def __init__(self, first: Hosting, start_seconds: float = 250) -> None:
        self.loop, self.host, self.seconds = asyncio.new_event_loop(), Host(), start_seconds
        self.engines = {model.engine for model in first.config.models}
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.run(self.host.apply(first))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=self.seconds)

    def serving(self, scenario: Callable[[Served], Awaitable[T]], access: Access | None = None) -> T:
        """Run a scenario against the application over this host."""

        async def run() -> T:
            app = build_app(self.host.gates, self.host.figures, access or Access())
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=self.seconds) as client:
                return await scenario(Served(self.host, client))

        return self.run(run())

    def close(self) -> None:
        """End every process and the loop."""
        self.run(self.host.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


@contextmanager
def listening(replica: Replica, access: Access) -> Iterator[str]:
    """A replica's application on an HTTP server in its loop; the base URL, which ends with a slash."""
    port = free_port()
    app = build_app(replica.host.gates, replica.host.figures, access)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    serving = asyncio.run_coroutine_threadsafe(server.serve(), replica.loop)
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    serving.result(timeout=60)


def serving(first: Hosting, scenario: Callable[[Served], Awaitable[T]]) -> T:
    """Run a scenario against an application of its own."""
    replica = Replica(first)
    try:
        return replica.serving(scenario)
    finally:
        replica.close()
