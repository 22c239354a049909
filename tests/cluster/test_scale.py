"""The plan for size: the document holds what the code reckons, and the simulator agrees with arithmetic and with the real feed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.scale import CASES, SMOL, network_table, sizes_table
from cluster.simulator import Setting, simulate
from tests.cluster.conftest import ROOT
from tests.wfray.data.conftest import SEQUENCE_LENGTH, write_corpus
from wfray.data.stream import MixedStream
from wfray.train import Feed, StepPlan

DOCUMENT = (ROOT / "docs/scale.md").read_text()


def test_the_document_holds_the_tables_of_the_code() -> None:
    assert sizes_table() in DOCUMENT and network_table() in DOCUMENT


def test_a_case_by_hand() -> None:
    case = CASES[0]
    assert case.rate == pytest.approx(0.35 * 989e12 / (3 * (2 * 134.5e6 + 2 * 30 * 576 * 2048)))
    assert SMOL.wires["hidden"] == 1152 and SMOL.wires["topk 64"] == 256


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [
        (Setting(1, 1, student_seconds=1.0, teacher_seconds=0.3), 1.0),
        (Setting(1, 1, student_seconds=1.0, teacher_seconds=2.5, in_flight=8), 2.5),
        (Setting(8, 2, student_seconds=1.0, teacher_seconds=0.5, in_flight=4), 2.0),
        (Setting(8, 2, student_seconds=3.0, teacher_seconds=0.5, in_flight=4), 3.0),
        (Setting(4, 4, student_seconds=1.0, teacher_seconds=0.5, wire_seconds=0.5, in_flight=4), 2.0),
        (Setting(1, 1, student_seconds=1.0, teacher_seconds=1.0, in_flight=1), 2.0),
    ],
    ids=["student", "teacher", "two teachers", "enough teachers", "wire", "nothing asked ahead"],
)
def test_the_slowest_part_sets_the_pace(setting: Setting, seconds: float) -> None:
    outcome = simulate(setting)
    assert setting.workers / outcome.tokens_per_second == pytest.approx(seconds, rel=0.03)
    assert outcome.wait_fraction == pytest.approx(1 - setting.student_seconds / seconds, abs=0.03)


def test_reclaims_cost_restarts_and_with_notice_nothing_else() -> None:
    common: dict[str, Any] = dict(workers=1, replicas=1, student_seconds=1.0, teacher_seconds=0.1, steps=100_000, reclaims_per_hour=0.5)
    warned, unwarned = simulate(Setting(**common, restart_seconds=300)), simulate(Setting(**common, restart_seconds=300, lost_steps=600))
    assert warned.lost_fraction == pytest.approx(0.5 * 300 / (3600 + 0.5 * 300), rel=0.4)
    assert unwarned.lost_fraction == pytest.approx(3 * warned.lost_fraction, rel=0.15)


class Clock:
    """Time that passes only where the test says so, in the place of the `time` module that the feed reads."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Answer:
    """Signals that are there at a moment."""

    clock: Clock
    ready: float

    def result(self) -> dict[str, Any]:
        self.clock.now = max(self.clock.now, self.ready)
        return {}


class SlowTeacher:
    """One replica that answers one request after the other, behind the real feed."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.free = clock, seconds, 0.0

    def request(self, batch: dict[str, Any]) -> Answer:
        self.free = max(self.clock.now, self.free) + self.seconds
        return Answer(self.clock, self.free)


@pytest.mark.parametrize(("student", "teacher", "in_flight"), [(0.03, 0.01, 2), (0.01, 0.03, 2), (0.02, 0.02, 1), (0.02, 0.05, 3)])
def test_the_real_feed_keeps_the_simulator_s_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: float, teacher: float, in_flight: int
) -> None:
    clock = Clock()
    monkeypatch.setattr("wfray.train.feed.time", clock)
    corpus, steps = write_corpus(tmp_path / "corpus", {"a": 40}, {"a": 1.0}), 40
    plan = StepPlan(rows=1, micro_rows=1, num_steps=steps, first_step=0, in_flight=in_flight)
    feed = Feed(MixedStream(corpus, seed=0), plan, SlowTeacher(clock, teacher), 0, 1)
    for _ in feed:
        clock.now += student
    outcome = simulate(Setting(1, 1, student, teacher, in_flight, micro_tokens=SEQUENCE_LENGTH, steps=steps))
    assert clock.now == pytest.approx(steps * SEQUENCE_LENGTH / outcome.tokens_per_second, rel=0.01)
    assert feed.teacher_seconds / clock.now == pytest.approx(outcome.wait_fraction, abs=0.01)
