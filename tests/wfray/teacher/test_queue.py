"""Whose turn it is: shares of tokens, batching by tokens, requests that are given up, errors that stay with who asked."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from wfray.teacher.meter import Meter
from wfray.teacher.queue import FairQueue
from wfray.teacher.rows import Arrays
from wfray.teacher.signals import SignalRequest

HIDDEN = SignalRequest(wires=["hidden"])


def rows(num_rows: int, length: int = 8, value: int = 0) -> Arrays:
    return {"input_ids": np.full((num_rows, length), value, dtype=np.int32)}


class Recorder:
    """Answers a batch with its own tokens after a time that grows with them, and remembers the passes."""

    def __init__(self, seconds_a_token: float = 0.0) -> None:
        self.seconds_a_token, self.passes = seconds_a_token, []

    def __call__(self, batch: Arrays, request: SignalRequest) -> Arrays:
        time.sleep(self.seconds_a_token * batch["input_ids"].size)
        self.passes.append((batch["input_ids"].shape, request))
        return {"hidden": batch["input_ids"]}


def run(compute: Callable, scenario: Callable, batch_tokens: int | None = None) -> FairQueue:
    """A scenario with a queue on an event loop of its own."""

    async def main() -> FairQueue:
        queue = FairQueue(compute, Meter(), batch_tokens)
        await scenario(queue)
        queue.close()
        return queue

    return asyncio.run(main())


@pytest.mark.parametrize(("greedy", "modest"), [((8, 1), (2, 1)), ((8, 1), (1, 4)), ((4, 4), (2, 3))])
def test_clients_who_wait_get_equal_shares_of_the_tokens(greedy: tuple[int, int], modest: tuple[int, int]) -> None:
    """(requests on their way, rows of each) of two clients, over the same time."""
    served: Counter[str] = Counter()
    kinds = {"greedy": greedy, "modest": modest}

    async def scenario(queue: FairQueue) -> None:
        async def client(name: str) -> None:
            while sum(served.values()) < 4000:
                await queue.answer(name, rows(kinds[name][1]), HIDDEN)
                served[name] += kinds[name][1] * 8

        await asyncio.gather(*(client(name) for name, (in_flight, _) in kinds.items() for _ in range(in_flight)))

    # With one request on its way a client is not always waiting: its share needs a second.
    run(Recorder(2e-5), scenario)
    share = served["modest"] / sum(served.values())
    assert abs(share - 0.5) < 0.05 or modest[0] == 1 and 0.4 < share < 0.55, served


def test_a_pause_earns_no_credit() -> None:
    order: list[str] = []

    async def scenario(queue: FairQueue) -> None:
        async def ask(name: str) -> None:
            await queue.answer(name, rows(1), HIDDEN)
            order.append(name)

        for _ in range(20):
            await ask("early")
        await asyncio.gather(*(ask(name) for name in ["early"] * 6 + ["late"] * 6))

    run(Recorder(1e-5), scenario)
    assert abs(order[20:26].count("late") - 3) <= 1


def test_without_batching_a_request_is_a_pass() -> None:
    compute = Recorder()

    async def scenario(queue: FairQueue) -> None:
        await asyncio.gather(*(queue.answer("a", rows(2), HIDDEN) for _ in range(5)))

    queue = run(compute, scenario)
    assert [shape for shape, _ in compute.passes] == [(2, 8)] * 5
    assert queue.meter.figures()["passes"] == 5 and queue.meter.figures()["computed_tokens"] == 80


def test_requests_share_passes_of_so_many_tokens_and_get_their_own_rows() -> None:
    compute = Recorder(1e-5)
    answers: dict[int, Arrays] = {}

    async def scenario(queue: FairQueue) -> None:
        async def ask(number: int) -> None:
            answers[number] = await queue.answer(f"client {number % 3}", rows(1 + number % 2, value=number), HIDDEN)

        await asyncio.gather(*(ask(number) for number in range(12)))

    run(compute, scenario, batch_tokens=40)
    assert all((answers[number]["hidden"] == number).all() and len(answers[number]["hidden"]) == 1 + number % 2 for number in answers)
    assert len(compute.passes) < 9 and max(shape[0] for shape, _ in compute.passes) in (4, 5)


def test_only_equal_requests_of_equal_length_share_a_pass_and_longer_ones_are_cut() -> None:
    compute = Recorder()

    async def scenario(queue: FairQueue) -> None:
        topk = SignalRequest(wires=["topk"], num_ids=2)
        asked = [(rows(1), HIDDEN), (rows(1, length=4), HIDDEN), (rows(1), topk), (rows(11), HIDDEN)]
        parts = await asyncio.gather(*(queue.answer("a", batch, request) for batch, request in asked))
        assert [part["hidden"].shape for part in parts] == [(1, 8), (1, 4), (1, 8), (11, 8)]

    queue = run(compute, scenario, batch_tokens=40)
    assert [shape for shape, _ in compute.passes] == [(1, 8), (1, 4), (1, 8), (5, 8), (5, 8), (1, 8)]
    assert queue.meter.figures()["passes"] == 6


def test_a_request_that_is_given_up_is_not_computed() -> None:
    compute = Recorder(1e-3)

    async def scenario(queue: FairQueue) -> None:
        first = asyncio.create_task(queue.answer("a", rows(1), HIDDEN))
        second = asyncio.create_task(queue.answer("a", rows(2), HIDDEN))
        third = asyncio.create_task(queue.answer("b", rows(3), HIDDEN))
        await asyncio.sleep(0.002)
        second.cancel()
        await asyncio.gather(first, third)
        assert len(queue) == 0

    run(compute, scenario)
    assert [shape[0] for shape, _ in compute.passes] == [1, 3]


def test_an_error_belongs_to_who_asked_and_the_queue_goes_on() -> None:
    def compute(batch: Arrays, request: SignalRequest) -> Arrays:
        if batch["input_ids"].any():
            raise ValueError("no such token")
        return {"hidden": batch["input_ids"]}

    async def scenario(queue: FairQueue) -> None:
        asked = (queue.answer("a", rows(1, value=value), HIDDEN) for value in (0, 1, 0))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [dict, ValueError, dict]

    run(compute, scenario)
