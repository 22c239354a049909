"""Asking a served model over HTTP, as a client would: a streamed chat completion, timed."""

import json
import time
from collections.abc import Iterator
from typing import Any

import requests
from pydantic import BaseModel

from wfray.config.serve import Probes

TIMEOUT_SECONDS = 120


class Sample(BaseModel):
    """One answer and how fast it came."""

    model: str
    prompt: str
    answer: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    first_token_seconds: float
    """From sending the request to the first piece of text."""
    tokens_per_second: float
    """Of the whole answer after its first token."""


def ask(base_url: str, model: str, prompt: str, probes: Probes, key: str | None = None) -> Sample:
    """Put one user message, after the system message of `probes`, to a model and read its answer; `key` is an API key if one is needed.

    Raises:
        ValueError: the server refuses the request.
    """
    system = [] if probes.system is None else [{"role": "system", "content": probes.system}]
    body: dict[str, Any] = {
        "model": model,
        "messages": [*system, {"role": "user", "content": prompt}],
        "max_tokens": probes.max_tokens,
        "temperature": probes.temperature,
        "seed": probes.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with requests.post(f"{base_url}/v1/chat/completions", json=body, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code != 200:
            raise ValueError(f"{model} refused the prompt {prompt!r}: {response.text}")
        return read_stream(response, model, prompt, start)


def read_stream(response: requests.Response, model: str, prompt: str, start: float) -> Sample:
    """Collect a streamed answer; `start` is when it was asked for. Raises `ValueError` for one that is broken off."""
    answer, finish_reason, usage, first = "", "", {"prompt_tokens": 0, "completion_tokens": 0}, None
    for chunk in events(response):
        if "error" in chunk:
            raise ValueError(f"{model} broke off its answer to {prompt!r}: {chunk['error']['message']}")
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            first = first or time.perf_counter()
            answer += choice["delta"].get("content", "")
            finish_reason = choice["finish_reason"] or finish_reason
    end = time.perf_counter()
    first = first or end
    return Sample(
        model=model,
        prompt=prompt,
        answer=answer,
        finish_reason=finish_reason,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        first_token_seconds=first - start,
        tokens_per_second=max(usage["completion_tokens"] - 1, 0) / (end - first) if end > first else 0.0,
    )


def events(response: requests.Response) -> Iterator[dict[str, Any]]:
    """The JSON bodies of a stream of server-sent events, up to `[DONE]`."""
    for line in response.iter_lines(chunk_size=1):
        text = line.decode()
        if text.startswith("data: ") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data: "))
