"""A block-diffusion student in lm-eval: the scorer's own numbers through a whole task, in one process and divided."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from tests.wfray.evals.test_harness import ITEMS, SOURCE, TEXTS, divided, place
from wfray.config.diffuse import DiffuseConfig
from wfray.config.evaluate import EvaluateConfig
from wfray.diffusion.likelihood import Scorer
from wfray.diffusion.student import DiffusionStudent
from wfray.evals.diffusion_lm import DiffusionLM
from wfray.evals.models import open_lm

__all__ = ["SOURCE", "place"]


@pytest.fixture(scope="module")
def student(place: Path) -> Path:
    """An untrained block-diffusion student, blocks of eight."""
    train = {"tokens": 16, "batch_tokens": 16, "checkpoint_every_tokens": 16, "optimizer": {"learning_rate": 0.1}}
    tree = {"run": "unused", "student": "unused", "block_size": 8, "objectives": [{"kind": "cross_entropy"}], "train": train}
    kind = DiffusionStudent(DiffuseConfig.parse(tree, "a test"))
    model = kind.load(place / "student")
    kind.save(model, place / "diffusion" / "student", place / "student", 0)
    return place / "diffusion" / "student"


@pytest.fixture(scope="module")
def lm(student: Path) -> DiffusionLM:
    return DiffusionLM(str(student), samples=7, seed=1, device="cpu")


def test_scores_are_the_scorers_and_do_not_depend_on_what_else_is_asked(lm: DiffusionLM, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(context, f" {choice}") for context, choices, _ in ITEMS[1:3] for choice in choices]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    found = lm.loglikelihood(asked)
    assert "6 log-likelihoods, 7 samples a block, seed 1: mean standard error" in capsys.readouterr().err
    assert lm.loglikelihood(asked[::-1]) == found[::-1]
    scorer = Scorer(lm.model, lm.method.mask_token_id, 8, num_samples=7, seed=1)
    for (context, continuation), (nats, is_greedy) in zip(pairs, found, strict=True):
        prefix, rest = lm._encode_pair(context, continuation)
        wanted = scorer.score(prefix, rest)
        assert (nats, is_greedy) == (wanted.nats, wanted.is_greedy) and wanted.standard_error in lm.standard_errors


def test_whole_tasks_give_the_same_divided_or_not(lm: DiffusionLM, place: Path, tmp_path: Path) -> None:
    parts = [divided(lm, place, tmp_path / str(size), tasks=["tiny_choices", "tiny_writing"]) for size in range(2)]
    assert json.dumps(parts[0]["results"], default=str) == json.dumps(parts[1]["results"], default=str)
    assert 0 <= parts[0]["results"]["tiny_choices"]["acc,none"] <= 1


def test_a_text_is_scored_window_by_window(lm: DiffusionLM) -> None:
    [found] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXTS[0],), 0)])
    windows = lm.windows(TEXTS[0])
    scores = [lm.likelihood(*window) for window in windows]
    assert found == pytest.approx(sum(score.nats for score in scores)) and math.isfinite(found) and found < 0
    assert lm.standard_errors[-1] == pytest.approx(sum(score.standard_error**2 for score in scores) ** 0.5)


def test_an_evaluation_opens_it_by_its_kind(student: Path) -> None:
    tree: dict[str, Any] = {"run": "unused", "corpus": None, "precision": "float32", "harness": {"preset": "smoke"}}
    subject = {"name": "blocks", "kind": "diffusion", "reference": "diffuse", "samples": 5, "block_size": 4}
    config = EvaluateConfig.parse({**tree, "subjects": [subject]}, "a test")
    assert config.parents == {"blocks": "diffuse"}
    with pytest.warns(UserWarning, match="block size 4: the student was trained for blocks of 8"):
        lm = open_lm(config, "blocks", student.parent)
    assert isinstance(lm, DiffusionLM) and lm.scorer.num_samples == 5 and lm.block_size == 4 and lm.precision == torch.float32


def test_an_autoregressive_student_is_refused(place: Path) -> None:
    with pytest.raises(ValueError, match="holds no dlm_config.json: it is no block-diffusion student"):
        DiffusionLM(str(place / "student"))
