"""The HTTP application over a real engine's process, without Ray."""

import asyncio
import json

from tests.wfray.serving.served import WEEK, Served
from wfray.serving.api import Access
from wfray.serving.guard import key_hash

CHAT = {"model": "smol", "messages": WEEK, "temperature": 0}
CHAT_PATH, PLAIN_PATH = "/v1/chat/completions", "/v1/completions"


def events(text: str) -> list[str]:
    """The data of a stream of server-sent events."""
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def test_chat_completions_whole_and_streamed(replica):
    async def scenario(served: Served):
        whole = (await served.post(CHAT_PATH, CHAT)).json()
        streamed = await served.post(CHAT_PATH, {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
        return whole, streamed

    whole, streamed = replica.serving(scenario)
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


def test_plain_completions(replica):
    async def scenario(served: Served):
        one = await served.complete("1, 2, 3, 4,", max_tokens=4)
        several = await served.complete(["The sun is", "A cat sat on"], n=2, seed=3, temperature=1)
        streamed = await served.complete(["The sun is", "A cat sat on"], n=2, seed=3, temperature=1, stream=True)
        scored = await served.complete("The sun is", echo=True, logprobs=2, max_tokens=0)
        return one.json(), several.json(), streamed.text, scored.json()

    one, several, streamed, scored = replica.serving(scenario)
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


def test_chat_log_probabilities(replica):
    async def scenario(served: Served):
        return (await served.post(CHAT_PATH, {**CHAT, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 5})).json()

    choice = replica.serving(scenario)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 5 and b"".join(bytes(token["bytes"]) for token in content).decode() == choice["message"]["content"]
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] and len(token["top_logprobs"]) == 2 for token in content)


REFUSED = [
    (CHAT_PATH, {**CHAT, "model": "other"}, 404, "model", "there are: smol"),
    (CHAT_PATH, {**CHAT, "temperature": 9}, 400, "temperature", "less than or equal to 2"),
    (CHAT_PATH, {**CHAT, "tools": []}, 400, "tools", "Extra inputs"),
    (CHAT_PATH, {"model": "smol", "messages": []}, 400, "messages", "at least 1 item"),
    (CHAT_PATH, b"{not json", 400, None, "JSON"),
    (CHAT_PATH, b"\xff\xfe", 400, None, "JSON"),
    (CHAT_PATH, b"[" * 100_000, 400, None, ""),
    (PLAIN_PATH, {"model": "smol", "prompt": "word " * 1100}, 400, None, "the context is 1024 tokens"),
    (PLAIN_PATH, {"model": "smol", "prompt": "word " * 1100, "stream": True}, 400, None, "the context is 1024 tokens"),
    (PLAIN_PATH, {"model": "smol", "prompt": ["a"] * 65}, 400, None, "65 answers are more than 64"),
    (PLAIN_PATH, {"model": "smol", "prompt": "x" * 10_000_000}, 413, None, "longer than 4194304 bytes"),
    (CHAT_PATH, {"model": "smol", "messages": [*WEEK, {"role": "user", "content": 5}]}, 400, "messages.1.content", "string"),
    (PLAIN_PATH, {"model": "smol", "prompt": 5}, 400, "prompt", "string"),
    ("/v1/nothing", {}, 404, None, "Not Found"),
]


def test_errors_have_openais_shape(replica):
    async def scenario(served: Served):
        answers = [await served.post(path, body) for path, body, *_ in REFUSED]
        return answers, await served.complete()

    answers, after = replica.serving(scenario)
    for (_, _, status, param, message), response in zip(REFUSED, answers, strict=True):
        error = response.json()["error"]
        assert response.status_code == status and set(error) == {"message", "type", "param", "code"}, response.text
        assert error["type"] == "invalid_request_error" and message in error["message"], error
        assert error["param"] == param
    assert after.status_code == 200


def test_keys(replica):
    async def scenario(served: Served):
        bodies = [
            await served.post(PLAIN_PATH, {"model": "smol", "prompt": "a"}, authorization=value)
            for value in ("", "Bearer wrong", "Bearer secret")
        ]
        return bodies, await served.client.get("/v1/models"), await served.client.get("/health")

    bodies, models, health = replica.serving(scenario, Access([key_hash("secret"), key_hash("other")]))
    assert [response.status_code for response in bodies] == [401, 401, 200]
    assert models.status_code == 401 and health.status_code == 200
    assert bodies[0].json()["error"]["code"] == "invalid_api_key" and bodies[0].headers["www-authenticate"] == "Bearer"


def test_a_full_queue_says_when_to_come_back_and_what_is_in_it_is_answered(replica):
    async def scenario(served: Served):
        return await asyncio.gather(*(served.complete(f"Number {number}", max_tokens=12) for number in range(60)))

    answers = replica.serving(scenario)
    codes = [response.status_code for response in answers]
    assert codes.count(200) == 10 and codes.count(429) == 50
    refused = next(response for response in answers if response.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60 and refused.json()["error"]["code"] == "rate_limit_exceeded"


def test_more_answers_than_there_can_ever_be_room_for_are_the_requests_fault(replica):
    async def scenario(served: Served):
        return await served.complete(n=11, max_tokens=1), await served.complete(["a"] * 10, max_tokens=1)

    refused, answered = replica.serving(scenario)
    assert refused.status_code == 400 and "11 answers at once are more than this model takes, 10" in refused.json()["error"]["message"]
    assert answered.status_code == 200


def test_what_the_official_client_sends_back_is_taken(replica):
    """An answer's message with every field that one may have, as its `model_dump` writes it."""
    unset = ("refusal", "annotations", "audio", "function_call", "tool_calls")

    async def scenario(served: Served):
        said = {"role": "assistant", "content": "Seven.", **dict.fromkeys(unset)}
        messages = [*WEEK, said, {"role": "user", "content": "And in two?"}]
        taken = await served.post(CHAT_PATH, {**CHAT, "messages": messages, "max_tokens": 1, "logit_bias": {}, "tools": None})
        said["tool_calls"] = [{}]
        return taken, await served.post(CHAT_PATH, {**CHAT, "messages": messages})

    taken, refused = replica.serving(scenario)
    assert taken.status_code == 200
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages.1.tool_calls"


def test_null_is_the_default_where_it_is_in_openais_api(replica):
    async def scenario(served: Served):
        nulls = dict.fromkeys(("top_p", "n", "stream", "echo", "stop", "seed", "logprobs", "suffix"))
        return await served.complete("The sun is", max_tokens=4, **nulls), await served.complete("The sun is", max_tokens=4)

    found, wanted = replica.serving(scenario)
    assert found.status_code == 200 and found.json()["choices"] == wanted.json()["choices"]


def test_a_deadline_ends_an_answer_and_frees_its_slot(replica):
    async def scenario(served: Served):
        gate = served.host.gates["smol"]
        usual, gate.deadline_seconds = gate.deadline_seconds, 0.2
        whole = await served.complete(max_tokens=None)
        streamed = await served.complete(max_tokens=None, stream=True)
        gate.deadline_seconds = usual
        return whole, streamed, await served.complete(max_tokens=1), gate.inside

    whole, streamed, short, inside = replica.serving(scenario)
    assert whole.status_code == 504 and whole.json()["error"]["code"] == "deadline_passed"
    assert "deadline_passed" in streamed.text and "[DONE]" not in streamed.text
    assert short.status_code == 200 and inside == 0


def number_of(metrics: str, name: str) -> float:
    """The value of one figure."""
    return sum(float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(f"wfray_serving_{name}{{"))


def test_health_models_and_metrics(replica):
    async def scenario(served: Served):
        before = (await served.client.get("/metrics")).text
        await served.complete("The sun is", max_tokens=3)
        await served.complete("The sun is bright", max_tokens=3)
        return before, *[await served.client.get(path) for path in ("/health", "/v1/models", "/v1/models/smol", "/metrics")]

    before, health, models, model, metrics = replica.serving(scenario)
    assert health.json() == {"status": "ok", "models": ["smol"]}
    assert [card["id"] for card in models.json()["data"]] == ["smol"] and model.json() == models.json()["data"][0]
    names = ("answers_total", "completion_tokens_total", "cached_tokens_total")
    grown = {name: number_of(metrics.text, name) - number_of(before, name) for name in names}
    assert grown["answers_total"] == 2 and grown["completion_tokens_total"] == 6 and grown["cached_tokens_total"] >= 3
    assert number_of(metrics.text, "inside") == 0 and number_of(metrics.text, "first_token_seconds_count") >= 2
