"""A stage's loss: the weighted sum of its objectives, one alone, and signals that do not fit."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from wfray.config.objectives import Objective
from wfray.objectives import StageLoss, Totals, num_related, relation_loss
from wfray.student.forward import BodyOutput
from wfray.student.segments import Segments
from wfray.teacher.signals import Signals
from wfray.teacher.sparse import sample, top_k

ROWS, LENGTH, WIDTH, VOCABULARY = 2, 8, 16, 60
KINDS = ["cross_entropy", "logits_kl", "certainty", "alignment", "attention_relations"]


def objectives(**kl: Any) -> list[Objective]:
    trees = [
        {"kind": "cross_entropy", "weight": 0.2},
        {"kind": "logits_kl", "weight": {"start": 2.0, "end": 4.0, "shape": "linear"}, "temperature": 2.0, **kl},
        {"kind": "certainty", "weight": 1.5},
        {"kind": "alignment", "weight": 0.5},
        {"kind": "attention_relations", "weight": 3.0, "layer": 0, "split_heads": 4},
    ]
    return TypeAdapter(list[Objective]).validate_python(trees)


class Batch:
    """Everything that a loss reads."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.hidden, self.head = normal(ROWS, LENGTH, WIDTH).requires_grad_(), normal(VOCABULARY, WIDTH).requires_grad_()
        self.layers = [normal(ROWS, LENGTH, WIDTH).requires_grad_() for _ in range(2)]
        self.qkv = tuple(normal(ROWS, 2, LENGTH, 8).requires_grad_() for _ in range(3))
        self.teacher_head = normal(VOCABULARY, WIDTH)
        segments = torch.tensor([[1] * 5 + [2] * 3, [1] * 6 + [0] * 2])
        targets = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator).masked_fill(segments == 0, -100)
        targets[:, :3] = (self.hidden @ self.head.t()).argmax(dim=-1)[:, :3]
        self.batch = {"targets": targets, "segment_ids": segments}
        hidden = normal(ROWS, LENGTH, WIDTH)
        logits = (hidden @ self.teacher_head.t()).flatten(0, 1)
        uniform = torch.rand(ROWS * LENGTH, dtype=torch.float64, generator=generator)
        self.signals: Signals = {
            "hidden": hidden,
            "layers": torch.stack([normal(ROWS, LENGTH, WIDTH) for _ in range(2)]),
            "qkv": (normal(ROWS, 2, LENGTH, 8), normal(ROWS, 2, LENGTH, 8), normal(ROWS, 2, LENGTH, 8)),
            "topk": top_k(logits, VOCABULARY - 1, 2.0).at(ROWS, LENGTH),
            "sampled": sample(logits, VOCABULARY - 1, 2.0, uniform).at(ROWS, LENGTH),
        }

    @property
    def inputs(self) -> list[Tensor]:
        return [self.hidden, self.head, *self.layers, *self.qkv]

    def evaluate(self, loss: StageLoss, only: str | None = None, num_targets: int = 14) -> tuple[Tensor, dict[str, float]]:
        output = BodyOutput(self.hidden, Segments.of(self.batch["segment_ids"]), self.layers, self.qkv)  # type: ignore[arg-type]
        return loss(output, self.head, self.batch, self.signals, Totals(num_targets, num_related(output.segments)), progress=0.5, only=only)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.inputs, allow_unused=True)
        return [torch.zeros_like(tensor) if gradient is None else gradient for tensor, gradient in zip(self.inputs, found, strict=True)]


def test_one_objective_alone_is_its_part_of_the_whole() -> None:
    batch = Batch()
    stage = StageLoss(objectives(), batch.teacher_head, torch.float32)
    total, parts = batch.evaluate(stage)
    assert list(parts) == KINDS
    alone = {kind: batch.evaluate(stage, only=kind) for kind in KINDS}
    assert parts["certainty"] > 0
    weights = {"cross_entropy": 0.2, "logits_kl": 3.0, "certainty": 1.5, "alignment": 0.5, "attention_relations": 3.0}
    for kind, (loss, part) in alone.items():
        assert part == {kind: pytest.approx(parts[kind], rel=1e-5)}
        assert loss.item() == pytest.approx(weights[kind] * parts[kind], rel=1e-5)
    summed = [sum(gradients) for gradients in zip(*(batch.gradients(loss) for loss, _ in alone.values()), strict=True)]
    for ours, whole in zip(summed, batch.gradients(total), strict=True):
        torch.testing.assert_close(ours, whole)


def test_relations_are_a_mean_over_all_rows_however_few_targets_there_are() -> None:
    """On task data the answer alone has a target; relations are of every token of its document."""
    batch = Batch()
    stage = StageLoss(objectives()[-1:], None, torch.float32)
    summed = relation_loss(batch.qkv, batch.signals["qkv"], Segments.of(batch.batch["segment_ids"]), 4).item()  # type: ignore[arg-type]
    for num_targets in (14, 2):
        _, parts = batch.evaluate(stage, num_targets=num_targets)
        assert parts == {"attention_relations": pytest.approx(summed / 14, rel=1e-6)}


@pytest.mark.parametrize("signal", ["topk", "sampled"])
def test_nearly_the_whole_vocabulary_cut_down_is_the_full_kl(signal: str) -> None:
    batch = Batch()
    full, cut = (
        batch.evaluate(StageLoss(objectives(**settings), batch.teacher_head, torch.float32), only="logits_kl")
        for settings in ({}, {"signal": signal, "num_ids": VOCABULARY - 1})
    )
    assert cut[0].item() == pytest.approx(full[0].item(), rel=1e-3)
    for ours, whole in zip(batch.gradients(cut[0]), batch.gradients(full[0]), strict=True):
        assert (ours - whole).norm() <= 0.02 * whole.norm()


@pytest.mark.parametrize("signal", ["topk", "sampled"])
def test_a_signal_of_another_temperature_is_refused(signal: str) -> None:
    batch = Batch()
    stage = StageLoss(objectives(signal=signal, temperature=1.0), None, torch.float32)
    with pytest.raises(ValueError, match=f"teacher's {signal} was made at temperature 2.0, logits_kl is at 1.0"):
        batch.evaluate(stage)


def test_an_objective_that_the_stage_does_not_have_is_refused() -> None:
    batch = Batch()
    stage = StageLoss(objectives()[:1], None, torch.float32)
    with pytest.raises(ValueError, match="the stage has no objective 'logits_kl': choose one of cross_entropy"):
        batch.evaluate(stage, only="logits_kl")


def test_a_number_of_ids_for_hidden_states_is_refused() -> None:
    with pytest.raises(ValueError, match="num_ids belongs to the signals topk and sampled"):
        objectives(num_ids=5)
