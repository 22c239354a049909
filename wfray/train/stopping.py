"""Early stopping: a stage ends when a loss has not fallen for `patience` measurements in a row.

The loss is the held-out cross-entropy of the weights that would be saved, or the mean training loss of the steps since the last
measurement. Measurements begin when lambda has its final value: before, the loss rises because the student is being quantized.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel
from transformers import PreTrainedModel

from wfray.config.optimizer import StopOnHeldoutLoss, StopOnTrainingLoss
from wfray.data.batch import PackedBatch
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import heldout
from wfray.objectives.linear_losses import linear_losses
from wfray.student.forward import Forward, lm_head_weight, run_body
from wfray.train.feed import as_tensors


class StoppingState(BaseModel):
    """What early stopping has seen."""

    best: float | None = None
    """The lowest loss measured, nats a token."""
    best_step: int = 0
    num_worse: int = 0
    """Measurements since then."""
    sum_loss: float = 0.0
    """Of the training losses since the last measurement."""
    num_losses: int = 0


class EarlyStop:
    """Decides when a stage is over."""

    def __init__(
        self,
        config: StopOnHeldoutLoss | StopOnTrainingLoss,
        state: StoppingState,
        batch_tokens: int,
        measure: Callable[[], float] | None,
    ) -> None:
        """Args: how to decide, what was seen so far, tokens of a step, what measures the loss (None: the mean training loss)."""
        self.config, self.state, self.measure = config, state, measure
        self.every = config.every_tokens // batch_tokens

    def after_step(self, step: int, loss: float | None) -> dict[str, Any]:
        """Take in the training loss of a step (None: it was refused); measure and judge where it is due.

        Returns:
            `heldout_loss` or `training_loss` where it was measured, and `stopped`, the reason, where the stage is over.
        """
        if loss is not None:
            self.state.sum_loss += loss
            self.state.num_losses += 1
        if (step + 1) % self.every or not self.state.num_losses:
            return {}
        measured = self.measure() if self.measure else self.state.sum_loss / self.state.num_losses
        self.state.sum_loss, self.state.num_losses = 0.0, 0
        reason = self.judge(measured, step + 1)
        return {f"{self.config.kind}_loss": measured} | ({"stopped": reason} if reason else {})

    def judge(self, loss: float, step: int) -> str | None:
        """Compare a measurement after `step` steps with the best one; returns why the stage is over, or None."""
        state = self.state
        if state.best is None or loss < state.best - self.config.min_improvement:
            state.best, state.best_step, state.num_worse = loss, step, 0
            return None
        state.num_worse += 1
        if state.num_worse < self.config.patience:
            return None
        return (
            f"the {self.config.kind} loss has not improved on {state.best:.4f} (step {state.best_step}) by more than "
            f"{self.config.min_improvement} in {state.num_worse} measurements"
        )


class HeldoutLoss:
    """The mean cross-entropy, nats a token, of the same held-out rows every time."""

    def __init__(self, corpus: PackedCorpus, weights: Mapping[str, float], config: StopOnHeldoutLoss) -> None:
        """Read the rows.

        Args:
            corpus: where the stage's rows come from.
            weights: the share of each source; those without one are left out.
            config: how many rows of each.

        Raises:
            ValueError: a source has fewer.
        """
        sources = [name for name, weight in weights.items() if weight > 0]
        self.batches: list[PackedBatch] = [heldout(corpus, source, config.rows_per_source) for source in sources]

    @torch.no_grad()
    def measure(self, model: PreTrainedModel, micro_rows: int, dtype: torch.dtype, forward: Forward = run_body) -> float:
        """The loss of `model` as it stands, `micro_rows` rows at a time, products in `dtype`, run by `forward`."""
        model.eval()
        total, num_targets = 0.0, 0
        for rows in self.batches:
            for first in range(0, len(rows["input_ids"]), micro_rows):
                batch = {name: tensor.to(model.device) for name, tensor in as_tensors(rows, slice(first, first + micro_rows)).items()}
                total += summed_cross_entropy(model, batch, dtype, forward)
                num_targets += int((batch["targets"] != -100).sum())
        model.train()
        return total / num_targets


def summed_cross_entropy(model: PreTrainedModel, batch: dict[str, torch.Tensor], dtype: torch.dtype, forward: Forward) -> float:
    """Nats, summed over the targets of a batch."""
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden_TC = forward(model, batch).hidden_BTC.flatten(0, 1)
        head_VC = lm_head_weight(model).detach()
        return linear_losses(hidden_TC, head_VC, batch["targets"].flatten(), 1, ce_weight=1.0, dtype=dtype).cross_entropy
