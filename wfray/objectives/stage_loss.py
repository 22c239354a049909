"""A stage's loss: its objectives with their weights at this moment, on one micro-batch.

Sums over tokens are divided by the number of targets in the whole global batch, so that gradients of micro-batches and
workers add up to the gradient of the batch, however it is cut.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wfray.config.train import Alignment, AttentionRelations, LogitsKL, Objective
from wfray.objectives.alignment import alignment_loss
from wfray.objectives.linear_losses import TeacherHead, linear_losses
from wfray.objectives.ramp import ramp_at
from wfray.objectives.relations import relation_loss
from wfray.student.attention import Segments
from wfray.student.forward import BodyOutput
from wfray.teacher.signals import Signals


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
        num_targets: int,
        progress: float,
    ) -> tuple[Tensor, dict[str, float]]:
        """Args: the body's output, the LM head, the micro-batch, its teacher signals, targets in the global batch, progress in 0..1."""
        weights: dict[str, float] = {kind: ramp_at(objective.weight, progress) for kind, objective in self.objectives.items()}
        loss, parts = self._linear(output, head_VC, batch, signals, num_targets, weights)
        if isinstance(objective := self.objectives.get("alignment"), Alignment):
            part = alignment_loss(output.layers, list(signals["layers"]), batch["targets"] != -100, num_targets, objective.layers)
            loss, parts["alignment"] = loss + weights["alignment"] * part, part.item()
        if isinstance(objective := self.objectives.get("attention_relations"), AttentionRelations):
            assert output.qkv is not None
            summed, _ = relation_loss(output.qkv, signals["qkv"], Segments.of(batch["segment_ids"]), objective.split_heads)
            part = summed / num_targets
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
        teacher = None
        if isinstance(objective := self.objectives.get("logits_kl"), LogitsKL):
            assert self.teacher_head_VC is not None
            teacher = TeacherHead(signals["hidden"].flatten(0, 1), self.teacher_head_VC, objective.temperature, objective.tau_squared)
        losses = linear_losses(
            output.hidden_BTC.flatten(0, 1),
            head_VC,
            batch["targets"].flatten(),
            num_targets,
            ce_weight=weights.get("cross_entropy", 0.0),
            kl_weight=weights.get("logits_kl", 0.0),
            teacher=teacher,
            dtype=self.dtype,
        )
        measured = {"cross_entropy": losses.cross_entropy, "logits_kl": losses.logits_kl}
        return losses.total, {kind: value for kind, value in measured.items() if kind in self.objectives}
