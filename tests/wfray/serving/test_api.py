"""The HTTP application over a real engine, in this process, without Ray."""

import asyncio
import json

import httpx
import pytest

from wfray.serving.api import build_app
from wfray.serving.engine import Sampling
from wfray.serving.queue import EngineQueue

CHAT = {"model": "smol", "messages": [{"role": "user", "content": "How many days are in a week?"}], "temperature": 0}


@pytest.fixture(scope="module")
def app(engine):
    return build_app({"smol": EngineQueue(engine)})


def encoded(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def call(app, *requests: tuple[str, object]) -> list[httpx.Response]:
    """POST all requests at once."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(
                *(client.post(path, content=encoded(body), headers={"content-type": "application/json"}) for path, body in requests)
            )

    return asyncio.run(run())


def post(app, path: str, body: object) -> httpx.Response:
    return call(app, (path, body))[0]


def test_a_chat_completion_has_the_answer_and_the_usage(app):
    body = post(app, "/v1/chat/completions", CHAT).json()
    assert body["object"] == "chat.completion" and body["model"] == "smol"
    assert "7 days" in body["choices"][0]["message"]["content"] and body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["prompt_tokens"] > 20 and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_is_the_same_answer_in_pieces(app):
    whole = post(app, "/v1/chat/completions", CHAT).json()
    response = post(app, "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert done == "[DONE]" and json.loads(last)["usage"] == whole["usage"] and json.loads(last)["choices"] == []
    assert deltas[0]["role"] == "assistant" and all("role" not in delta for delta in deltas[1:])
    assert len(deltas) > 2 and "".join(delta["content"] for delta in deltas) == whole["choices"][0]["message"]["content"]


def test_a_plain_completion_continues_the_prompt(app):
    body = post(app, "/v1/completions", {"model": "smol", "prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 4}).json()
    assert body["object"] == "text_completion" and "5" in body["choices"][0]["text"]
    assert body["usage"]["completion_tokens"] == 4 and body["choices"][0]["finish_reason"] == "length"


def test_requests_that_come_together_are_all_answered_as_if_alone(app):
    prompts = ["The sun is", "A cat sat", "In 1999"]
    requests = [("/v1/completions", {"model": "smol", "prompt": prompt, "temperature": 0, "max_tokens": 6}) for prompt in prompts]
    together = [response.json()["choices"][0]["text"] for response in call(app, *requests)]
    alone = [post(app, *request).json()["choices"][0]["text"] for request in requests]
    assert together == alone


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("/v1/chat/completions", {**CHAT, "model": "other"}, 404, "model", "there are: smol"),
        ("/v1/chat/completions", {**CHAT, "temperature": 9}, 400, "temperature", "less than or equal to 2"),
        ("/v1/chat/completions", {**CHAT, "tools": []}, 400, "tools", "Extra inputs"),
        ("/v1/chat/completions", {"model": "smol", "messages": []}, 400, "messages", "at least 1 item"),
        ("/v1/chat/completions", b"{not json", 400, None, "JSON"),
        ("/v1/completions", {"model": "smol", "prompt": "word " * 200}, 400, None, "the context is 128 tokens"),
        ("/v1/completions", {"model": "smol", "prompt": "word " * 200, "stream": True}, 400, None, "the context is 128 tokens"),
        ("/v1/nothing", {}, 404, None, "Not Found"),
    ],
)
def test_errors_have_openais_shape(app, path, body, status, param, message):
    response = post(app, path, body)
    error = response.json()["error"]
    assert response.status_code == status and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and message in error["message"]
    assert error["param"] == param or param is None


def test_a_client_that_goes_away_frees_the_engine(engine):
    """Of a stream that is closed after its first piece, the engine computes no more than the token at hand."""

    async def run() -> tuple[int, int]:
        queue = EngineQueue(engine)
        pieces = queue.generate(engine.tokenize("Once upon a time"), Sampling(max_tokens=100, temperature=0.0))
        await anext(pieces)
        await pieces.aclose()
        async for _ in queue.generate(engine.tokenize("Stop"), Sampling(max_tokens=1, temperature=0.0)):
            pass
        return engine.model.n_tokens, len(engine.tokenize("Stop"))

    num_held, num_prompt = asyncio.run(run())
    assert num_held == num_prompt


def test_health_and_models(app):
    async def get(path: str) -> dict:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return (await client.get(path)).json()

    assert asyncio.run(get("/health")) == {"status": "ok", "models": ["smol"]}
    assert [model["id"] for model in asyncio.run(get("/v1/models"))["data"]] == ["smol"]
