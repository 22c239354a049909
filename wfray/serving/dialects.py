"""What a server of another program is asked and how its answers are read; and what all of them share on HTTP."""

import json
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import aiohttp

from wfray.serving.backend import EngineLost
from wfray.serving.engine import Piece, Request

Json = dict[str, Any]


class Dialect(Protocol):
    """The API of a server."""

    async def ask(self, session: aiohttp.ClientSession, request: Request) -> tuple[str, Json]:
        """The path and body that ask for an answer; raises `ValueError` for what the server cannot do."""

    def read(self, response: aiohttp.ClientResponse, request: Request) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer; the last one has the reason of its end and the counts."""


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


async def events(response: aiohttp.ClientResponse) -> AsyncGenerator[Json, None]:
    """The JSON bodies of server-sent events, up to `[DONE]` or the end; raises `EngineLost` for one that says that the answer failed."""
    async for line in response.content:
        data = line.decode().strip().removeprefix("data: ")
        if data == "[DONE]":
            return
        if data.startswith("{"):
            event = json.loads(data)
            if "error" in event:
                raise EngineLost(f"the server broke an answer off: {str(event['error'])[:300]}")
            yield event
