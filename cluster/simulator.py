"""Students and teachers in time: how much of the machines is used, when answers queue, travel, and machines are taken away.

A discrete simulation of what `wfray.train.feed` and the teacher application do: each worker keeps `in_flight` requests on their way, the
teacher's replicas answer in the order of arrival, answers share one network, and workers wait for each other at the end of a step. It
is given measured times; `docs/scale.md` is checked against it.
"""

import heapq
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """Times in seconds, of one micro-batch unless said otherwise."""

    workers: int
    replicas: int
    student_seconds: float
    teacher_seconds: float
    in_flight: int = 2
    micro_per_step: int = 1
    """Of one worker."""
    micro_tokens: int = 1
    wire_seconds: float = 0.0
    """Of one answer on the network that all answers share."""
    steps: int = 200
    reclaims_per_hour: float = 0.0
    """Of all student machines together."""
    restart_seconds: float = 300.0
    """Until a new machine trains."""
    lost_steps: float = 0.0
    """Done again after a reclaim: half a checkpoint interval without notice, none with."""
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What comes of it."""

    tokens_per_second: float
    wait_fraction: float
    """Share of the workers' time, reclaims left out, that went into waiting for answers, their own or another worker's."""
    lost_fraction: float
    """Share of the whole time that reclaims took."""


class Teacher:
    """Replicas that answer in the order of arrival, and the network behind them."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.free, self.wire_free = setting, [0.0] * setting.replicas, 0.0

    def answer(self, asked: float) -> float:
        """When the answer to a request of this moment arrives; requests come in the order of time."""
        done = max(asked, heapq.heappop(self.free)) + self.setting.teacher_seconds
        heapq.heappush(self.free, done)
        self.wire_free = max(done, self.wire_free) + self.setting.wire_seconds
        return self.wire_free


def simulate(setting: Setting) -> Outcome:
    """Run the steps, then spread reclaims over their time."""
    seconds = run_steps(setting)
    lost = reclaims(setting, seconds)
    num_micro = setting.steps * setting.micro_per_step
    tokens = num_micro * setting.workers * setting.micro_tokens
    return Outcome(tokens / (seconds + lost), 1 - num_micro * setting.student_seconds / seconds, lost / (seconds + lost))


def run_steps(setting: Setting) -> float:
    """Seconds of all steps."""
    teacher, total = Teacher(setting), setting.steps * setting.micro_per_step
    ready: dict[tuple[int, int], float] = {}
    turns = [(0.0, worker, 0) for worker in range(setting.workers)]
    at_barrier: list[float] = []
    now = 0.0
    while turns:
        now, worker, micro = heapq.heappop(turns)
        first = 0 if micro == 0 else micro + setting.in_flight - 1
        for coming in range(first, min(micro + setting.in_flight, total)):
            ready[worker, coming] = teacher.answer(now)
        ends = max(now, ready.pop((worker, micro))) + setting.student_seconds
        if (micro + 1) % setting.micro_per_step:
            heapq.heappush(turns, (ends, worker, micro + 1))
            continue
        at_barrier.append(ends)
        if len(at_barrier) == setting.workers:
            now = max(at_barrier)
            at_barrier.clear()
            if micro + 1 < total:
                turns = [(now, each, micro + 1) for each in range(setting.workers)]
    return now


def reclaims(setting: Setting, seconds: float) -> float:
    """Seconds that machines taken away cost while `seconds` of work are done."""
    if not setting.reclaims_per_hour:
        return 0.0
    chance, done, lost = random.Random(setting.seed), 0.0, 0.0
    each = setting.restart_seconds + setting.lost_steps * seconds / setting.steps
    while (done := done + chance.expovariate(setting.reclaims_per_hour / 3600)) < seconds:
        lost += each
    return lost
