"""The actor of an evaluation, in this process: what it says of a block-diffusion student's answers lasts as they do."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from actors.harness import Answerer, monte_carlo
from tests.wfray.evals.test_diffusion_lm import SOURCE, place, student
from wfray.config.evaluate import DiffusionSubject, EvaluateConfig
from wfray.evals.diffusion_lm import DiffusionLM
from wfray.evals.divided import Answer, DividedLM
from wfray.evals.slices import Kind, Request

__all__ = ["SOURCE", "place", "student"]
NAME = "blocks"
ENDS = ("mill", "violin of the queen, who sang", "and very blue number of things")
PAIRS = [("The river ran past the old", f" {end}") for end in ENDS]
TEXTS = [("The ships hung in the sky.",), ("Yes",)]


class Alone:
    """One actor, asked here; implements `Workers`."""

    def __init__(self, config: EvaluateConfig, path: Path) -> None:
        self.actor, self.path, self.asked = Answerer(config), path, 0

    def divide(self, kind: Kind, requests: Sequence[Request], size: int) -> list[list[int]]:
        return self.actor.divide(NAME, self.path, kind, requests, size)

    def answers(self, kind: Kind, slices: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Answer]]]:
        for number, requests in enumerate(slices):
            self.asked += len(requests)
            yield number, self.actor.answer(NAME, self.path, kind, requests)

    def ask(self, name: str, *arguments: Any) -> Any:
        return self.actor.ask(NAME, self.path, name, *arguments)


@pytest.fixture(scope="module")
def config() -> EvaluateConfig:
    subject = {"name": NAME, "kind": "diffusion", "reference": "diffuse", "samples": 5, "seed": 2}
    tree = {"run": "unused", "corpus": None, "precision": "float32", "harness": {"preset": "smoke"}, "subjects": [subject]}
    return EvaluateConfig.parse(tree, "a test")


def asked(lm: Any) -> tuple[list[tuple[float, bool]], list[float]]:
    choices = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]
    texts = [Instance("loglikelihood_rolling", {}, text, number) for number, text in enumerate(TEXTS)]
    return lm.loglikelihood(choices), lm.loglikelihood_rolling(texts)


def test_standard_errors_are_kept_with_answers_and_are_there_after_a_restart(config: EvaluateConfig, student: Path, tmp_path: Path) -> None:
    alone = DiffusionLM(str(student), samples=5, seed=2, device="cpu")
    wanted = asked(alone)
    lms = []
    for _ in range(2):
        workers = Alone(config, student.parent)
        lms.append(DividedLM(workers, tmp_path, 2, lambda share, kind: None))
        assert asked(lms[-1]) == wanted and workers.asked == (5 if len(lms) == 1 else 0)
    assert lms[0].standard_errors == lms[1].standard_errors == alone.standard_errors and min(alone.standard_errors[1:3]) > 0
    subject = config.subjects[0]
    assert isinstance(subject, DiffusionSubject)
    found = json.loads(json.dumps(monte_carlo(subject, lms[1].standard_errors)))["monte_carlo"]
    assert found["log_likelihoods"] == 5 and found["mean_standard_error_nats"] == pytest.approx(sum(alone.standard_errors) / 5)
