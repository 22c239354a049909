"""Gradient-norm ratios: they are those of the terms' own gradients, and taking them changes nothing."""

from pathlib import Path

import pytest
import torch

from tests.wfray.train.conftest import Attempt, LocalTeacher, config
from wfray.config.train import TrainConfig
from wfray.data.corpus import PackedCorpus

WEIGHTS = {"cross_entropy": 0.5, "logits_kl": 2.0, "alignment": 4.0, "attention_relations": 100.0}


def settings(weights: dict[str, float] = WEIGHTS, **train: object) -> TrainConfig:
    objectives = [{"kind": kind, "weight": weight} for kind, weight in weights.items()]
    for objective in objectives:
        if objective["kind"] == "attention_relations":
            objective |= {"layer": 1, "split_heads": 4}
    teacher = {"application": "teacher"} if set(weights) != {"cross_entropy"} else None
    return config({"objectives": objectives, "teacher": teacher}, **train)


def run(corpus: PackedCorpus, directory: Path, config: TrainConfig) -> Attempt:
    attempt = Attempt(corpus, directory, config, teacher=LocalTeacher())
    attempt.run()
    return attempt


@pytest.mark.parametrize("extra", [{}, {"optimizer": {"kind": "muon_clip", "learning_rate": 1e-2, "tau": 2.0}}], ids=["adamw", "muon_clip"])
def test_the_run_is_the_same_to_the_bit_with_and_without_it(corpus: PackedCorpus, tmp_path: Path, extra: dict[str, object]) -> None:
    plain = run(corpus, tmp_path / "plain", settings(**extra))
    generator = torch.get_rng_state()
    measured = run(corpus, tmp_path / "measured", settings(**extra, gradient_ratio_every_steps=3))
    assert torch.equal(torch.get_rng_state(), generator)
    names = [f"gradient_ratio_{kind}" for kind in WEIGHTS if kind != "cross_entropy"]
    assert [row["step"] for row in measured.rows if all(name in row for name in names)] == [1, 4, 7, 10]
    without = {step: {name: row[name] for name in row if name not in names} for step, row in measured.figures().items()}
    assert without == plain.figures()
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), measured.model.parameters(), strict=True))


def test_the_ratios_are_those_of_stages_with_one_objective_each(corpus: PackedCorpus, tmp_path: Path) -> None:
    """One micro-batch a step, so that a step's gradient is the micro-batch's."""
    together = run(corpus, tmp_path / "all", settings(micro_rows=8, gradient_ratio_every_steps=1)).rows[0]
    norms = {
        kind: run(corpus, tmp_path / kind, settings({kind: weight}, micro_rows=8)).rows[0]["gradient_norm"]
        for kind, weight in WEIGHTS.items()
    }
    for kind in set(WEIGHTS) - {"cross_entropy"}:
        assert together[f"gradient_ratio_{kind}"] == pytest.approx(norms[kind] / norms["cross_entropy"], rel=1e-3), kind


def test_nothing_is_said_while_cross_entropy_has_no_weight(corpus: PackedCorpus, tmp_path: Path) -> None:
    rows = run(corpus, tmp_path, settings({"cross_entropy": 0.0, "logits_kl": 1.0}, gradient_ratio_every_steps=1)).rows
    assert not any(name.startswith("gradient_ratio") for row in rows for name in row)
