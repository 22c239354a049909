"""The HTTP application over a real engine's process, without Ray."""

import asyncio
import json

from tests.wfray.serving.served import CONTEXT, WEEK, Served, hosting, serving
from wfray.serving.api import Access
from wfray.serving.guard import key_hash

CHAT = {"model": "smol", "messages": WEEK, "temperature": 0}
CHAT_PATH, PLAIN_PATH = "/v1/chat/completions", "/v1/completions"


def events(text: str) -> list[str]:
    """The data of a stream of server-sent events."""
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def test_chat_completions_whole_and_streamed(model_file):
    async def scenario(served: Served):
        whole = (await served.post(CHAT_PATH, CHAT)).json()
        streamed = await served.post(CHAT_PATH, {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
        return whole, streamed

    whole, streamed = serving(hosting(model_file), scenario)
    message, usage = whole["choices"][0]["message"], whole["usage"]
    assert whole["object"] == "chat.completion" and whole["model"] == "smol" and whole["choices"][0]["finish_reason"] == "stop"
    assert "7 days" in message["content"] and message["role"] == "assistant"
    assert usage["prompt_tokens"] > 20 and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    *chunks, last, done = events(streamed.text)
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert streamed.headers["content-type"].startswith("text/event-stream") and done == "[DONE]"
    assert json.loads(last)["choices"] == [] and json.loads(last)["usage"]["completion_tokens"] == usage["completion_tokens"]
    assert deltas[0]["role"] == "assistant" and all("role" not in delta for delta in deltas[1:])
    assert len(deltas) > 2 and "".join(delta["content"] for delta in deltas) == message["content"]


def test_plain_completions(model_file):
    async def scenario(served: Served):
        one = await served.complete("1, 2, 3, 4,", max_tokens=4)
        several = await served.complete(["The sun is", "A cat sat on"], n=2, seed=3, temperature=1)
        streamed = await served.complete(["The sun is", "A cat sat on"], n=2, seed=3, temperature=1, stream=True)
        scored = await served.complete("The sun is", echo=True, logprobs=2, max_tokens=0)
        return one.json(), several.json(), streamed.text, scored.json()

    one, several, streamed, scored = serving(hosting(model_file), scenario)
    assert one["object"] == "text_completion" and "5" in one["choices"][0]["text"]
    assert one["usage"]["completion_tokens"] == 4 and one["choices"][0]["finish_reason"] == "length"
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3] and several["usage"]["completion_tokens"] == 32
    texts = ["", "", "", ""]
    for event in events(streamed)[:-1]:
        choice = json.loads(event)["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in several["choices"]] and len(set(texts)) == 4
    logprobs = scored["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == scored["choices"][0]["text"] == "The sun is"
    assert logprobs["token_logprobs"][0] is None and all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"] == [0, 3, 7]


def test_chat_log_probabilities(model_file):
    async def scenario(served: Served):
        return (await served.post(CHAT_PATH, {**CHAT, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 5})).json()

    choice = serving(hosting(model_file), scenario)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 5 and b"".join(bytes(token["bytes"]) for token in content).decode() == choice["message"]["content"]
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] and len(token["top_logprobs"]) == 2 for token in content)


REFUSED = [
    (CHAT_PATH, {**CHAT, "model": "other"}, 404, "model", "there are: smol"),
    (CHAT_PATH, {**CHAT, "temperature": 9}, 400, "temperature", "less than or equal to 2"),
    (CHAT_PATH, {**CHAT, "tools": []}, 400, "tools", "Extra inputs"),
    (CHAT_PATH, {"model": "smol", "messages": []}, 400, "messages", "at least 1 item"),
    (CHAT_PATH, b"{not json", 400, None, "JSON"),
    (CHAT_PATH, b"\xff\xfe", 400, None, "pars"),
    (CHAT_PATH, b"[" * 100_000, 400, None, ""),
    (PLAIN_PATH, {"model": "smol", "prompt": "word " * 200}, 400, None, "the context is 128 tokens"),
    (PLAIN_PATH, {"model": "smol", "prompt": "word " * 200, "stream": True}, 400, None, "the context is 128 tokens"),
    (PLAIN_PATH, {"model": "smol", "prompt": ["a"] * 65}, 400, None, "65 answers are more than 64"),
    (PLAIN_PATH, {"model": "smol", "prompt": "x" * 10_000_000}, 413, None, "longer than 4194304 bytes"),
    ("/v1/nothing", {}, 404, None, "Not Found"),
]


def test_errors_have_openais_shape(model_file):
    async def scenario(served: Served):
        answers = [await served.post(path, body) for path, body, *_ in REFUSED]
        return answers, await served.complete()

    answers, after = serving(hosting(model_file), scenario)
    for (_, _, status, param, message), response in zip(REFUSED, answers, strict=True):
        error = response.json()["error"]
        assert response.status_code == status and set(error) == {"message", "type", "param", "code"}, response.text
        assert error["type"] == "invalid_request_error" and message in error["message"], error
        assert error["param"] == param or param is None
    assert after.status_code == 200


def test_keys(model_file):
    async def scenario(served: Served):
        bodies = [
            await served.post(PLAIN_PATH, {"model": "smol", "prompt": "a"}, authorization=value)
            for value in ("", "Bearer wrong", "Bearer secret")
        ]
        return bodies, await served.client.get("/v1/models"), await served.client.get("/health")

    bodies, models, health = serving(hosting(model_file), scenario, Access([key_hash("secret"), key_hash("other")]))
    assert [response.status_code for response in bodies] == [401, 401, 200]
    assert models.status_code == 401 and health.status_code == 200
    assert bodies[0].json()["error"]["code"] == "invalid_api_key" and bodies[0].headers["www-authenticate"] == "Bearer"


def test_a_full_queue_says_when_to_come_back_and_what_is_in_it_is_answered(model_file):
    async def scenario(served: Served):
        return await asyncio.gather(*(served.complete(f"Number {number}", max_tokens=12) for number in range(60)))

    answers = serving(hosting(model_file, max_queued=8), scenario)
    codes = [response.status_code for response in answers]
    assert codes.count(200) == 10 and codes.count(429) == 50
    refused = next(response for response in answers if response.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60 and refused.json()["error"]["code"] == "rate_limit_exceeded"


def test_a_deadline_ends_an_answer_and_frees_its_slot(model_file):
    async def scenario(served: Served):
        whole = await served.complete(max_tokens=None)
        streamed = await served.complete(max_tokens=None, stream=True)
        return whole, streamed, await served.complete(max_tokens=1), served.host.gates["smol"].inside

    whole, streamed, short, inside = serving(hosting(model_file, deadline_seconds=0.25, model={"context": 4096}), scenario)
    assert whole.status_code == 504 and whole.json()["error"]["code"] == "deadline_passed"
    assert json.loads(events(streamed.text)[-1])["error"]["code"] == "deadline_passed" and "[DONE]" not in streamed.text
    assert short.status_code == 200 and inside == 0


def test_health_models_and_metrics(model_file):
    async def scenario(served: Served):
        await served.complete("The sun is", max_tokens=3)
        await served.complete("The sun is bright", max_tokens=3)
        return [await served.client.get(path) for path in ("/health", "/v1/models", "/v1/models/smol", "/metrics")]

    health, models, model, metrics = serving(hosting(model_file), scenario)
    assert health.json() == {"status": "ok", "models": ["smol"]}
    assert [card["id"] for card in models.json()["data"]] == ["smol"] and model.json() == models.json()["data"][0]
    assert 'wfray_serving_answers_total{finish_reason="length",model="smol"} 2.0' in metrics.text
    assert 'wfray_serving_completion_tokens_total{model="smol"} 6.0' in metrics.text
    assert 'wfray_serving_cached_tokens_total{model="smol"} 3.0' in metrics.text
    assert 'wfray_serving_inside{model="smol"} 0.0' in metrics.text


def test_a_context_of_another_size_is_told_in_the_message(model_file):
    async def scenario(served: Served):
        return await served.complete([5] * CONTEXT)

    assert f"the context is {CONTEXT} tokens" in serving(hosting(model_file), scenario).json()["error"]["message"]
