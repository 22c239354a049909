"""Distillation from a teacher that sends a few ids a token, from the configuration over the wire to the trained student."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.wfray.train.conftest import STEP, Attempt, LocalAnswer, LocalTeacher, config
from wfray.config.train import TrainConfig
from wfray.data.corpus import PackedCorpus
from wfray.objectives.linear_losses import linear_losses
from wfray.objectives.soft_targets import TeacherHead
from wfray.student.forward import hidden_states
from wfray.teacher.engine import sparse_signals
from wfray.teacher.signals import SignalRequest, decode_signals, encode

NUM_STEPS = 30


def settings(**kl: Any) -> TrainConfig:
    objective = {"kind": "logits_kl", "temperature": 2.0, **kl}
    return config({"objectives": [objective], "teacher": {}}, tokens=NUM_STEPS * STEP, checkpoint_every_tokens=NUM_STEPS * STEP)


class WireTeacher(LocalTeacher):
    """Answers a stage's request as an engine does."""

    def __init__(self, stage: TrainConfig) -> None:
        super().__init__()
        self.wanted = SignalRequest.of(stage.objectives, stage.train.seed)

    @torch.no_grad()
    def request(self, batch: dict[str, np.ndarray]) -> LocalAnswer:
        hidden_BTC = super().request(batch).signals["hidden"]
        arrays = {"hidden": encode(hidden_BTC)} if "hidden" in self.wanted.wires else {}
        arrays.update(sparse_signals(batch["input_ids"], hidden_BTC, self.model.lm_head.weight, self.wanted))
        return LocalAnswer(decode_signals(arrays))


def train(corpus: PackedCorpus, directory: Path, stage: TrainConfig) -> Attempt:
    attempt = Attempt(corpus, directory, stage, teacher=WireTeacher(stage))
    attempt.run()
    return attempt


@torch.no_grad()
def full_kl(attempt: Attempt, batch: dict[str, torch.Tensor]) -> float:
    """The student's distance from the teacher over the whole vocabulary."""
    teacher = LocalTeacher().model
    signal = TeacherHead(hidden_states(teacher, batch).flatten(0, 1), teacher.lm_head.weight, 2.0)
    hidden_TC, any_T = hidden_states(attempt.model, batch).flatten(0, 1), torch.where(batch["segment_ids"].flatten() > 0, 0, -100)
    return linear_losses(hidden_TC, attempt.model.lm_head.weight, any_T, 21, kl_weight=1.0, teacher=signal).logits_kl


@pytest.fixture(scope="module")
def full(corpus: PackedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """Trained from hidden states."""
    return train(corpus, tmp_path_factory.mktemp("full"), settings())


@pytest.mark.parametrize(("signal", "num_ids"), [("topk", 20), ("sampled", 16)])
def test_few_ids_teach_nearly_what_hidden_states_do(
    corpus: PackedCorpus, tmp_path: Path, packed: dict[str, torch.Tensor], full: Attempt, signal: str, num_ids: int
) -> None:
    cut = train(corpus, tmp_path / "cut", settings(signal=signal, num_ids=num_ids))
    untrained = Attempt(corpus, tmp_path / "untrained", settings(), teacher=LocalTeacher())
    before, after, reference = (full_kl(attempt, packed) for attempt in (untrained, cut, full))
    assert reference < 0.7 * before
    assert after - reference < 0.3 * (before - reference)


def test_a_sampled_stage_repeats_to_the_bit(corpus: PackedCorpus, tmp_path: Path) -> None:
    stage = settings(signal="sampled", num_ids=4)
    first, second = (train(corpus, tmp_path / name, stage) for name in "ab")
    assert first.figures() == second.figures()
