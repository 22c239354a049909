"""`scores.json`: written whole, read back, told as a table."""

import json
import math
from pathlib import Path

import pytest

from wfray.evals import Continuation, Score, Scores, SubjectScores


@pytest.fixture
def scores() -> Scores:
    def subject(name: str, first: float, second: float) -> SubjectScores:
        sources = {"code": Score(num_tokens=100, sum_nats=first), "prose": Score(num_tokens=300, sum_nats=second)}
        return SubjectScores(name=name, kind="student", reference="distill", sources=sources)

    continuation = Continuation(source="code", prompt="def f(", truth="x):", answers={"teacher": "a):"})
    return Scores(
        precision="float32", subjects=[subject("teacher", 200.0, 900.0), subject("distilled", 300.0, 1500.0)], continuations=[continuation]
    )


def test_reads_back_what_was_written_and_states_what_follows_from_the_sums(scores: Scores, tmp_path: Path) -> None:
    path = scores.write(tmp_path)
    assert Scores.read(tmp_path) == scores
    written = json.loads(path.read_text())["subjects"][0]
    assert written["sources"]["code"] == {"num_tokens": 100, "sum_nats": 200.0, "loss": 2.0, "perplexity": math.exp(2)}
    assert written["overall"]["loss"] == 1100 / 400


def test_the_table_has_sources_as_rows_and_subjects_as_columns(scores: Scores) -> None:
    header, code, prose, overall = scores.table().splitlines()
    assert header.split() == ["held-out", "perplexity", "teacher", "distilled"]
    assert code.split() == ["code", "7.39", "20.09"]
    assert prose.split() == ["prose", "20.09", "148.41"]
    assert overall.split() == ["all", "15.64", "90.02"]
    assert len({len(line) for line in (header, code, prose, overall)}) == 1
    assert scores.figures()["perplexity"]["distilled"]["all"] == pytest.approx(90.0171)
