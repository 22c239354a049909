"""What goes wrong in an engine's process, for real: killed, stopped, wrong files, replaced while it works."""

import asyncio
import json
import os
import re
import signal
import time

import httpx
import psutil
import pytest

from tests.wfray.serving.served import Served, hosting, serving
from wfray.serving import engine_process
from wfray.serving.engine import Request, Sampling
from wfray.serving.supervised import Life


def process_of(served: Served, name: str = "smol") -> int:
    """The process id of a model's engine."""
    return served.host.gates[name].backend.life.pid


async def wait_for_inside(served: Served, num_inside: int) -> None:
    """Until so many requests are inside."""
    while served.host.gates["smol"].inside < num_inside:
        await asyncio.sleep(0.01)


async def num_begun(served: Served) -> int:
    """Answers of which a first piece was sent."""
    metrics = (await served.client.get("/metrics")).text
    found = re.search(r'^wfray_serving_first_token_seconds_count\{model="smol"\} (\S+)$', metrics, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_an_engine_killed_under_load_is_back_in_seconds_and_whole_answers_are_made_again(replica):
    async def scenario(served: Served):
        alone = (await served.complete(max_tokens=30)).json()["choices"][0]["text"]
        asked = [asyncio.create_task(served.complete(max_tokens=30)) for _ in range(8)]
        await wait_for_inside(served, 8)
        first = process_of(served)
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        answers = await asyncio.gather(*asked)
        assert (await served.complete(max_tokens=1)).status_code == 200
        return alone, answers, time.monotonic() - killed, first != process_of(served), served.host.gates["smol"].backend.restarts

    alone, answers, seconds, replaced, restarts = replica.serving(scenario)
    assert [response.status_code for response in answers] == [200] * 8
    assert all(response.json()["choices"][0]["text"][:30] == alone[:30] for response in answers)
    assert replaced and restarts >= 1 and seconds < 60


def test_a_process_that_cannot_be_understood_is_ended_and_its_answers_made_again(model_file, monkeypatch):
    async def scenario(served: Served):
        first = process_of(served)
        scored = asyncio.create_task(served.complete("word " * 100, echo=True, logprobs=20, max_tokens=1))
        lost = await scored
        return lost, await served.complete(max_tokens=2), psutil.pid_exists(first), served.host.gates["smol"].backend.restarts

    monkeypatch.setattr(engine_process, "LINE_BYTES", 60_000)
    lost, after, is_alive, restarts = serving(hosting(model_file), scenario)
    assert lost.status_code == 503 and lost.json()["error"]["code"] == "engine_lost"
    assert after.status_code == 200 and not is_alive and restarts >= 1


def last_event(response: httpx.Response) -> str:
    """The last one of a stream."""
    return response.text.split("\n\n")[-2].removeprefix("data: ")


def test_a_stream_of_several_answers_ends_with_an_error_also_where_some_of_their_text_is_still_held_back(model_file):
    """What is held when the engine dies comes in the same moment as the error."""

    async def scenario(served: Served):
        asked = asyncio.create_task(served.complete(max_tokens=900, stream=True, n=2))
        await wait_for_inside(served, 2)
        backend = served.host.gates["smol"].backend
        while not all(box.held for box in backend.life.mailboxes.values()) or len(backend.life.mailboxes) < 2:
            await asyncio.sleep(0)
        os.kill(process_of(served), signal.SIGKILL)
        return await asked

    broken = serving(hosting(model_file, model={"context": 1024}, flush_seconds=0.5), scenario)
    assert json.loads(last_event(broken))["error"]["code"] == "engine_lost" and "[DONE]" not in broken.text


def test_a_stream_that_was_begun_ends_with_an_error_and_the_others_go_on(replica):
    async def scenario(served: Served):
        before = await num_begun(served)
        streams = [asyncio.create_task(served.complete(max_tokens=900, stream=True)) for _ in range(2)]
        await wait_for_inside(served, 2)
        waiting = [asyncio.create_task(served.complete(max_tokens=3, stream=True)) for _ in range(3)]
        await wait_for_inside(served, 5)
        while await num_begun(served) < before + 2:
            await asyncio.sleep(0.01)
        os.kill(process_of(served), signal.SIGKILL)
        return await asyncio.gather(*streams), await asyncio.gather(*waiting)

    streams, waiting = replica.serving(scenario)
    for response in streams:
        assert json.loads(last_event(response))["error"]["code"] == "engine_lost" and "[DONE]" not in response.text
    assert all(response.text.endswith("data: [DONE]\n\n") for response in waiting)


@pytest.mark.slow
def test_an_engine_that_stands_still_is_killed_and_replaced(model_file):
    async def scenario(served: Served):
        asked = asyncio.create_task(served.complete(max_tokens=100))
        await wait_for_inside(served, 1)
        os.kill(process_of(served), signal.SIGSTOP)
        return await asked, served.host.gates["smol"].backend.restarts

    response, restarts = serving(hosting(model_file, stall_seconds=8), scenario)
    assert response.status_code == 200 and restarts == 1


@pytest.mark.slow
def test_an_engine_that_does_not_start_again_is_reported(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr("wfray.serving.supervised.MAX_FAILED_STARTS", 1)
    file = tmp_path / "model.gguf"
    os.link(model_file, file) if os.stat(tmp_path).st_dev == os.stat(model_file).st_dev else file.write_bytes(model_file.read_bytes())

    async def scenario(served: Served):
        healthy = (await served.client.get("/health")).status_code
        file.unlink()
        os.kill(process_of(served), signal.SIGKILL)
        while (health := await served.client.get("/health")).status_code == 200:
            await asyncio.sleep(0.1)
        return healthy, health.json()

    healthy, health = serving(hosting(file), scenario)
    assert healthy == 200 and health["status"] == "failing" and "there is no model file" in health["troubles"]["smol"]


def test_an_answer_that_nobody_reads_any_more_frees_its_slot(replica):
    async def scenario(served: Served):
        begun = time.monotonic()
        whole = await served.complete("1, 2, 3, 4,", max_tokens=300)
        seconds = time.monotonic() - begun
        long = Request(prompt="1, 2, 3, 4,", sampling=Sampling(temperature=0.0, max_tokens=900))
        answers = [served.host.gates["smol"].backend.generate(long) for _ in range(2)]
        for pieces in answers:
            await anext(pieces)
        for pieces in answers:
            await pieces.aclose()
        begun = time.monotonic()
        await served.complete(max_tokens=1)
        return whole.json()["usage"]["completion_tokens"], seconds, time.monotonic() - begun

    num_tokens, whole, waited = replica.serving(scenario)
    assert num_tokens == 300 and waited < whole, "both slots were held by answers of three times as many tokens"


@pytest.mark.slow
def test_a_model_is_replaced_without_dropping_a_request(model_file):
    async def scenario(served: Served):
        first, statuses = process_of(served), []
        ended = asyncio.Event()

        async def client(number: int) -> None:
            while not ended.is_set():
                statuses.append((await served.complete(f"Number {number}", max_tokens=6)).status_code)

        clients = [asyncio.create_task(client(number)) for number in range(4)]
        stream = asyncio.create_task(served.complete(max_tokens=100, stream=True))
        await wait_for_inside(served, 5)
        await served.host.apply(hosting(model_file, version="2"))
        second = process_of(served)
        await asyncio.gather(*served.host.draining)
        ended.set()
        await asyncio.gather(*clients)
        return statuses, (await stream).text, first, second, psutil.pid_exists(first)

    statuses, stream, first, second, still_there = serving(hosting(model_file), scenario)
    assert len(statuses) > 8 and set(statuses) == {200} and stream.endswith("data: [DONE]\n\n")
    assert first != second and not still_there


def test_a_replacement_that_cannot_be_loaded_leaves_everything_as_it_was(model_file, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(model_file.read_bytes()[:50_000_000])

    async def scenario(served: Served):
        before = process_of(served)
        with pytest.raises(ValueError, match=r"cannot load .*cut\.gguf"):
            await served.host.apply(hosting(tmp_path / "cut.gguf", names=("smol", "second")))
        response = await served.complete(max_tokens=1)
        return before == process_of(served), response.status_code, list(served.host.gates)

    assert serving(hosting(model_file), scenario) == (True, 200, ["smol"])


def test_the_engine_ends_with_its_replica(model_file):
    async def scenario(served: Served):
        return served.host.gates["smol"].backend.life

    process = serving(hosting(model_file), scenario)
    assert process.process.returncode == 0


def test_what_a_drained_model_cannot_finish_is_lost_at_once(model_file):
    async def scenario(served: Served):
        gate = served.host.gates["smol"]
        asked = asyncio.create_task(served.complete("1, 2, 3, 4,", max_tokens=900))
        await wait_for_inside(served, 1)
        await gate.backend.close()
        return await asked

    response = serving(hosting(model_file, model={"context": 1024}, deadline_seconds=100), scenario)
    assert response.status_code == 503 and "has been replaced or taken down" in response.json()["error"]["message"]


def test_an_engine_that_dies_before_it_has_heard_what_to_load_is_started_again(model_file, monkeypatch):
    async def scenario(served: Served):
        backend, starts = served.host.gates["smol"].backend, []

        async def begin() -> Life:
            starts.append(1)
            if len(starts) == 1:
                raise ConnectionResetError(104, "Connection reset by peer")
            return await begin_well()

        begin_well, backend.begin = backend.begin, begin
        os.kill(process_of(served), signal.SIGKILL)
        return await served.complete(max_tokens=1), len(starts)

    response, num_starts = serving(hosting(model_file), scenario)
    assert response.status_code == 200 and num_starts == 2


def test_an_engine_that_is_lost_twice_loses_its_answer(replica):
    async def scenario(served: Served):
        gate, tries = served.host.gates["smol"], []

        async def kill_each() -> None:
            for _ in range(2):
                while not gate.backend.alive.is_set() or not gate.backend.life.mailboxes:
                    await asyncio.sleep(0.01)
                tries.append(process_of(served))
                os.kill(tries[-1], signal.SIGKILL)
                while gate.backend.alive.is_set():
                    await asyncio.sleep(0.01)

        killing = asyncio.create_task(kill_each())
        response = await served.complete(max_tokens=100)
        await killing
        return response, tries

    response, tries = replica.serving(scenario)
    assert response.status_code == 503 and response.json()["error"]["code"] == "engine_lost" and len(set(tries)) == 2
