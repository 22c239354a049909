"""An engine that is an OpenAI-compatible server by itself, behind the same API: answers, refusals, and a server killed with -9."""

import os
import signal
import sys
import time

import psutil
import pytest

from tests.wfray.serving.served import WEEK, Served, hosting, serving
from wfray.config.serve import ServedModel
from wfray.serving import servers
from wfray.serving.servers import ServerLaunch

CHAT = {"model": "smol", "messages": WEEK, "temperature": 0}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Settings of a model that this project's own API serves as a program."""

    def launch(model: ServedModel, file: object) -> ServerLaunch:
        return ServerLaunch([sys.executable, "-m", "tests.wfray.serving.plain_server", str(file)])

    monkeypatch.setitem(servers.SERVERS, "vllm", launch)
    return {"model": {"engine": "vllm", "python": sys.executable}}


def test_a_server_is_read_as_any_engine_and_started_again_when_it_dies(model_file, server):
    async def scenario(served: Served):
        chat = await served.post("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 1})
        streamed = await served.post("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
        scored = await served.complete("The sun is", echo=True, logprobs=1, max_tokens=1)
        refused = await served.complete("word " * 300)
        family = [psutil.Process(served.host.gates["smol"].backend.life.pid)]
        family += family[0].children(recursive=True)
        os.kill(family[0].pid, signal.SIGKILL)
        after = await served.complete(max_tokens=2)
        return chat.json(), streamed.text, scored.json(), refused, after, served.host.gates["smol"].backend.restarts, family

    chat, streamed, scored, refused, after, restarts, family = serving(hosting(model_file, **server), scenario)
    choice = chat["choices"][0]
    assert "7 days" in choice["message"]["content"] and choice["finish_reason"] == "stop" and chat["usage"]["completion_tokens"] > 5
    tokens = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == choice["message"]["content"]
    assert '"completion_tokens": ' in streamed and streamed.endswith("data: [DONE]\n\n")
    logprobs = scored["choices"][0]["logprobs"]
    assert scored["choices"][0]["text"].startswith("The sun is") and logprobs["token_logprobs"][0] is None and len(logprobs["tokens"]) == 4
    assert refused.status_code == 400 and "the context is 128 tokens" in refused.json()["error"]["message"]
    assert after.status_code == 200 and restarts == 1
    deadline = time.monotonic() + 30
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_programs_that_are_not_there_are_named(model_file, tmp_path):
    with pytest.raises(ValueError, match="there is no .*llama-server'"):
        serving(hosting(model_file, model={"engine": "bitnet_cpp", "binaries": str(tmp_path)}), never)
    with pytest.raises(ValueError, match="cannot run '/nowhere/python'"):
        serving(hosting(model_file, model={"engine": "vllm", "python": "/nowhere/python"}), never)


async def never(served: Served) -> None:
    raise AssertionError
