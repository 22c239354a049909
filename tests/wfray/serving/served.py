"""What the tests of this room share: engines run to the end, and a replica's application in this process."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx

from wfray.config.serve import ServeConfig
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


def serving(first: Hosting, scenario: Callable[[Served], Awaitable[T]], access: Access | None = None) -> T:
    """Run a scenario against an application that serves `first`."""

    async def run() -> T:
        host = Host()
        async with AsyncExitStack() as stack:
            await host.apply(first)
            stack.push_async_callback(host.close)
            app = build_app(host.gates, host.figures, access or Access())
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120))
            return await scenario(Served(host, client))

    return asyncio.run(run())
