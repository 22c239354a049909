"""A stage's loss: its objectives with their weights at this moment, on one micro-batch.

Sums over tokens are divided by the number of such tokens in the whole global batch, so that gradients of micro-batches and workers add
up to the gradient of the batch, however it is cut. That number is the targets for all but the attention relations: they compare every
token of a document, and where only an answer of one token has a target the two numbers lie far apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wfray.config.objectives import Alignment, AttentionRelations, Certainty, ConcreteScore, LogitsKL, Objective
from wfray.objectives.alignment import alignment_loss
from wfray.objectives.certainty import CertaintyTerm
from wfray.objectives.linear_losses import linear_losses
from wfray.objectives.ramp import ramp_at
from wfray.objectives.relations import relation_loss
from wfray.objectives.soft_targets import Shortlist, Teacher, TeacherHead
from wfray.student.forward import BodyOutput
from wfray.teacher.signals import Signals


@dataclass(frozen=True)
class Totals:
    """What the whole global batch holds."""

    num_targets: int
    num_related: int | None
    """Tokens that relations are taken of (`num_related`); None: not counted, since no objective asks."""


class StageLoss(nn.Module):
    """Evaluates a stage's objectives. `forward` returns the loss that carries gradients, and the parts as floats."""

    def __init__(self, objectives: Sequence[Objective], teacher_head_VC: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.objectives = {objective.kind: objective for objective in objectives}
        self.teacher_head_VC = None if teacher_head_VC is None else teacher_head_VC.to(dtype)
        self.dtype = dtype

    @property
    def needs_layers(self) -> bool:
        """Whether the outputs of all layers are needed."""
        return "alignment" in self.objectives

    @property
    def qkv_layer(self) -> int | None:
        """The layer whose Q, K and V are needed."""
        relations = self.objectives.get("attention_relations")
        return relations.layer if isinstance(relations, AttentionRelations) else None

    def forward(
        self,
        output: BodyOutput,
        head_VC: Tensor,
        batch: dict[str, Tensor],
        signals: Signals,
        totals: Totals,
        progress: float,
        only: str | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of one micro-batch.

        Args:
            output: of the student's body, with what `needs_layers` and `qkv_layer` ask for.
            head_VC: the student's LM head.
            batch: the micro-batch.
            signals: of the teacher.
            totals: of the global batch.
            progress: of the stage, 0..1.
            only: kind of the one objective to evaluate, with its weight; None: all.

        Raises:
            ValueError: the stage has no objective `only`, or a signal does not fit its objective.
        """
        if only is not None and only not in self.objectives:
            raise ValueError(f"the stage has no objective {only!r}: choose one of {', '.join(self.objectives)}")
        chosen = {kind: objective for kind, objective in self.objectives.items() if only in (None, kind)}
        weights: dict[str, float] = {kind: ramp_at(objective.weight, progress) for kind, objective in chosen.items()}
        loss, parts = self._linear(output, head_VC, batch, signals, totals.num_targets, weights)
        if isinstance(objective := chosen.get("alignment"), Alignment):
            mask_BT = batch["targets"] != -100
            part = alignment_loss(output.layers, list(signals["layers"]), mask_BT, totals.num_targets, objective.layers, objective.distance)
            loss, parts["alignment"] = loss + weights["alignment"] * part, part.item()
        if isinstance(objective := chosen.get("attention_relations"), AttentionRelations):
            assert output.qkv is not None and totals.num_related is not None
            summed = relation_loss(output.qkv, signals["qkv"], output.segments, objective.split_heads)
            part = summed / max(totals.num_related, 1)
            loss, parts["attention_relations"] = loss + weights["attention_relations"] * part, part.item()
        return loss, parts

    def _linear(
        self,
        output: BodyOutput,
        head_VC: Tensor,
        batch: dict[str, Tensor],
        signals: Signals,
        num_targets: int,
        weights: dict[str, float],
    ) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy, the KL of logits and certainty, in one pass."""
        objective = next((one for one in self.objectives.values() if isinstance(one, LogitsKL | ConcreteScore)), None)
        kind = objective.kind if objective else "logits_kl"
        ce_weight, kl_weight = weights.get("cross_entropy"), weights.get(kind)
        certainty = self._certainty(weights.get("certainty"))
        if ce_weight is None and kl_weight is None and certainty is None:
            return head_VC.new_zeros((), dtype=torch.float32), {}
        losses = linear_losses(
            output.hidden_BTC.flatten(0, 1),
            head_VC,
            batch["targets"].flatten(),
            num_targets,
            ce_weight=ce_weight,
            kl_weight=kl_weight,
            teacher=self._teacher(objective, signals) if objective and kl_weight is not None else None,
            tau_squared=isinstance(objective, ConcreteScore) or (isinstance(objective, LogitsKL) and objective.tau_squared),
            certainty=certainty,
            dtype=self.dtype,
        )
        measured = {"cross_entropy": losses.cross_entropy, kind: losses.logits_kl, "certainty": losses.entropy}
        return losses.total, {kind: value for kind, value in measured.items() if kind in weights}

    def _certainty(self, weight: float | None) -> CertaintyTerm | None:
        """The term with its weight at this moment."""
        objective = self.objectives.get("certainty")
        if weight is None or not isinstance(objective, Certainty):
            return None
        return CertaintyTerm(weight, objective.temperature)

    def _teacher(self, objective: LogitsKL | ConcreteScore, signals: Signals) -> Teacher:
        """The signal that the objective names, its positions in one axis."""
        if isinstance(objective, ConcreteScore):
            require_temperature("topk", signals["topk"].temperature, objective)
            return Shortlist.of(signals["topk"].at(-1))
        if objective.signal == "hidden":
            assert self.teacher_head_VC is not None
            return TeacherHead(signals["hidden"].flatten(0, 1), self.teacher_head_VC, objective.temperature)
        signal = signals["topk"] if objective.signal == "topk" else signals["sampled"]
        require_temperature(objective.signal, signal.temperature, objective)
        return signal.at(-1)


def require_temperature(signal: str, made_at: float, objective: LogitsKL | ConcreteScore) -> None:
    """Raise `ValueError` where a teacher's signal was made at another temperature than the objective's."""
    if made_at != objective.temperature:
        raise ValueError(
            f"the teacher's {signal} was made at temperature {made_at}, {objective.kind} is at {objective.temperature}: "
            "what was left out cannot be tempered again; ask the teacher at the same temperature"
        )
