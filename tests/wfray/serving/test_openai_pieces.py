"""What another OpenAI-compatible server sends, over HTTP: scores without text, and an answer that it breaks off."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from wfray.serving.backend import EngineLost
from wfray.serving.engine import Piece, Request, Sampling
from wfray.serving.openai_pieces import OpenAIDialect

LLAMA = "🦙".encode()
SCORES = [{"token": "�", "bytes": [byte], "logprob": -0.5, "top_logprobs": []} for byte in LLAMA]
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
SPLIT = [{"choices": [{"delta": {"content": "🦙" * (index == 3)}, "logprobs": {"content": [SCORES[index]]}}]} for index in range(4)]


def read(events: list[dict[str, Any]], request: Request) -> tuple[list[Piece], dict[str, Any]]:
    """The pieces of an answer, and the body that asked for it, of a server that sends these events."""
    asked: dict[str, Any] = {}

    async def serve(http: web.Request) -> web.Response:
        asked.update(await http.json())
        return web.Response(text="".join(f"data: {json.dumps(event)}\n\n" for event in events), content_type="text/event-stream")

    async def scenario() -> list[Piece]:
        app = web.Application()
        app.router.add_post("/{path:.*}", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            port = runner.addresses[0][1]
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                dialect = OpenAIDialect()
                path, body = await dialect.ask(session, request)
                async with session.post(path, json=body) as response:
                    return [piece async for piece in dialect.read(response, request)]
        finally:
            await runner.cleanup()

    return asyncio.run(scenario()), asked


CHAT = Request(prompt=[{"role": "user", "content": "Draw a llama"}], num_logprobs=0)


def test_the_scores_of_a_character_of_several_tokens_are_kept() -> None:
    pieces, _ = read([*SPLIT, END, USAGE], CHAT)
    scores = [score for piece in pieces for score in piece.scores]
    assert bytes(byte for score in scores for byte in score.bytes) == LLAMA
    assert "".join(piece.text for piece in pieces) == "🦙" and sum(piece.num_tokens for piece in pieces) == 4


def test_an_answer_that_is_broken_off_is_lost() -> None:
    with pytest.raises(EngineLost, match="broke an answer off.*out of memory"):
        read([SPLIT[0], {"error": {"message": "out of memory"}}], CHAT)


def test_a_completion_without_a_budget_is_refused_and_a_conversation_goes_on() -> None:
    """Servers take OpenAI's 16 tokens for the one, also where null is sent, and the whole context for the other."""
    with pytest.raises(ValueError, match="max_tokens: .* after 16 tokens: say how many"):
        read([END, USAGE], Request(prompt="Once"))
    assert read([END, USAGE], Request(prompt="Once", sampling=Sampling(max_tokens=7)))[1]["max_tokens"] == 7
    assert "max_tokens" not in read([END, USAGE], CHAT)[1]
