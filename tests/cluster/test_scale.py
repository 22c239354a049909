"""The plan for size: the document holds what the code reckons, and the simulator agrees with arithmetic and with the real feed."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
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


class SlowTeacher:
    """Replicas that take their time, behind the real feed."""

    def __init__(self, replicas: int, seconds: float) -> None:
        self.pool, self.seconds = ThreadPoolExecutor(replicas), seconds

    def request(self, batch: dict[str, Any]) -> "Future[dict[str, Any]]":
        return self.pool.submit(lambda: time.sleep(self.seconds) or {})  # type: ignore[func-returns-value]


@pytest.mark.parametrize(("student", "teacher", "in_flight"), [(0.03, 0.01, 2), (0.01, 0.03, 2), (0.02, 0.02, 1), (0.02, 0.05, 3)])
def test_the_real_feed_keeps_the_simulator_s_time(tmp_path: Path, student: float, teacher: float, in_flight: int) -> None:
    """Measured times go in: what a sleep really takes on this machine."""
    corpus, steps = write_corpus(tmp_path / "corpus", {"a": 40}, {"a": 1.0}), 40
    took: list[float] = []
    plan = StepPlan(rows=1, micro_rows=1, num_steps=steps, first_step=0, in_flight=in_flight)
    feed = Feed(MixedStream(corpus, seed=0), plan, SlowTeacher(1, teacher), 0, 1)
    began = time.perf_counter()
    for _ in feed:
        started = time.perf_counter()
        time.sleep(student)
        took.append(time.perf_counter() - started)
    elapsed = time.perf_counter() - began
    measured = sorted(took)[steps // 2]
    outcome = simulate(Setting(1, 1, measured, teacher + measured - student, in_flight, micro_tokens=SEQUENCE_LENGTH, steps=steps))
    assert elapsed == pytest.approx(steps * SEQUENCE_LENGTH / outcome.tokens_per_second, rel=0.25)
    assert feed.teacher_seconds / elapsed == pytest.approx(outcome.wait_fraction, abs=0.15)
