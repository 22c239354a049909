"""vllm, sglang and bitnet.cpp behind the application: SmolLM2-135M answers in each, and comes back when its server is killed with -9."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.wfray.serving.served import WEEK, Replica, Served, hosting
from wfray.config.teacher import TeacherConfig
from wfray.student import materialize

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]
ENGINES = Path(os.environ.get("WFRAY_ENGINES", "~/.cache/wfray/engines")).expanduser()
CHAT = {"model": "smol", "messages": WEEK, "temperature": 0, "max_tokens": 24}
NO_BITNET = pytest.mark.skipif("WFRAY_BITNET_CPP" not in os.environ, reason="WFRAY_BITNET_CPP names no folder with bitnet.cpp's binaries")


def settings(name: str) -> dict[str, Any]:
    """Of a model whose server runs on one core."""
    where = {"binaries": os.environ.get("WFRAY_BITNET_CPP")} if name == "bitnet_cpp" else {"python": str(ENGINES / name / "bin" / "python")}
    return {"engine": name, "context": 256, **where}


@pytest.fixture(scope="module", params=["vllm", "sglang", pytest.param("bitnet_cpp", marks=NO_BITNET)])
def replica(request: pytest.FixtureRequest, model_file: Path):
    """A replica of each engine; bitnet.cpp reads the GGUF file, the others the same weights as a directory."""
    config = TeacherConfig.load(ROOT / "configs" / "teacher" / "smollm2_135m.yaml")
    file = model_file if request.param == "bitnet_cpp" else materialize(config.model, ROOT / ".cache" / "models")
    replica = Replica(hosting(file, model=settings(request.param)), start_seconds=600)
    yield replica
    replica.close()


def test_answers_whole_and_streamed_are_the_same(replica: Replica) -> None:
    async def scenario(served: Served) -> tuple[Any, str]:
        whole = await served.post("/v1/chat/completions", CHAT)
        streamed = await served.post("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
        return whole.json(), streamed.text

    whole, streamed = replica.serving(scenario)
    text = whole["choices"][0]["message"]["content"]
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n") if line and line != "data: [DONE]"]
    assert "7" in text or "seven" in text
    assert "".join(choice["delta"]["content"] for event in events for choice in event["choices"]) == text
    assert all(events[-1]["usage"][name] == whole["usage"][name] for name in ("prompt_tokens", "completion_tokens"))
    assert whole["usage"]["completion_tokens"] > 5


def test_plain_completions_end_where_they_should(replica: Replica) -> None:
    async def scenario(served: Served) -> tuple[Any, Any, Any]:
        stopped = await served.complete("1, 2, 3, 4,", max_tokens=20, stop=[" 7", "7"])
        cut = await served.complete("1, 2, 3, 4,", max_tokens=3)
        long = await served.complete("word " * 400)
        return stopped.json(), cut.json(), long

    stopped, cut, long = replica.serving(scenario)
    choice = stopped["choices"][0]
    assert "6" in choice["text"] and "7" not in choice["text"] and choice["finish_reason"] == "stop"
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 3
    assert long.status_code == 400


def test_without_a_budget_an_answer_goes_on_until_the_context_is_full_or_is_refused(replica: Replica) -> None:
    """Left out, a server would take OpenAI's 16 tokens."""

    async def scenario(served: Served) -> Any:
        return await served.complete("1, 2, 3, 4,", max_tokens=None)

    answer = replica.serving(scenario)
    if answer.status_code == 400:
        assert "max_tokens" in answer.json()["error"]["message"]
    else:
        usage, choice = answer.json()["usage"], answer.json()["choices"][0]
        assert usage["completion_tokens"] > 16 and (choice["finish_reason"] == "stop" or usage["total_tokens"] == 256)


def test_seeds_are_honoured_or_refused(replica: Replica) -> None:
    async def scenario(served: Served) -> list[Any]:
        return [await served.complete("Once upon a time", temperature=1.0, seed=seed) for seed in (7, 7, 8)]

    answers = replica.serving(scenario)
    if "sglang" in replica.engines:
        assert answers[0].status_code == 400 and "--enable-deterministic-inference" in answers[0].json()["error"]["message"]
    else:
        first, same, other = (answer.json()["choices"][0]["text"] for answer in answers)
        assert first == same != other


def test_log_probabilities_are_given_or_refused(replica: Replica) -> None:
    async def scenario(served: Served) -> Any:
        return await served.complete("1, 2, 3, 4,", max_tokens=4, logprobs=2)

    answer = replica.serving(scenario)
    if "bitnet_cpp" in replica.engines:
        assert answer.status_code == 400 and "no log-probabilities" in answer.json()["error"]["message"]
    else:
        logprobs = answer.json()["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == 4 and all(value <= 0 for value in logprobs["token_logprobs"])


def test_a_killed_server_is_started_again_and_leaves_no_process(replica: Replica) -> None:
    async def scenario(served: Served) -> tuple[list[psutil.Process], int, Any]:
        server = psutil.Process(served.host.gates["smol"].backend.life.pid)
        family = [server, *server.children(recursive=True)]
        server.send_signal(signal.SIGKILL)
        answer = await served.complete("Once upon a time")
        return family, served.host.gates["smol"].backend.restarts, answer

    family, restarts, answer = replica.serving(scenario)
    assert restarts == 1 and answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 8
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
