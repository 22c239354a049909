"""The training loop of stages 1.9, 2 and 3: the stage's objectives on micro-batches, one optimizer step a global batch.

Master weights, gradients and optimizer states are float32; products run in bfloat16 under autocast. Gradients are sums over the
global batch's tokens divided by its number of targets, so cutting it into micro-batches or over workers changes the order of
summation only. For equal configuration, seed and number of threads the losses repeat to the bit, also across a restart.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from wfray.config.train import TrainConfig
from wfray.objectives.stage_loss import StageLoss
from wfray.quant import hold_codes, lambda_at, release_codes, set_lambda
from wfray.student.forward import lm_head_weight, run_body
from wfray.train.checkpoints import CheckpointStore, Progress
from wfray.train.collective import Collective
from wfray.train.feed import Feed, MicroBatch
from wfray.train.optimizer import set_learning_rate
from wfray.train.schedule import learning_rate_factor

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Trainer:
    """One worker of a stage."""

    config: TrainConfig
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    loss: StageLoss
    checkpoints: CheckpointStore
    collective: Collective
    log: Callable[..., None]
    """Called with each step's figures, on rank 0 only."""
    sums: dict[str, float] = field(default_factory=dict)

    def run(self, feed: Feed) -> None:
        """Train to the end of the feed, checkpointing on the way."""
        self.model.train()
        self._begin_step(feed.plan.first_step)
        started, waited = time.perf_counter(), (0.0, 0.0)
        for micro in feed:
            self._accumulate(micro)
            if not micro.is_last:
                continue
            figures = self._update(micro.step)
            elapsed = time.perf_counter() - started
            waits = (feed.data_seconds - waited[0], feed.teacher_seconds - waited[1])
            self._log(micro.step, figures, elapsed, waits)
            self._checkpoint(micro)
            started, waited = time.perf_counter(), (feed.data_seconds, feed.teacher_seconds)
            if micro.step + 1 < self.config.num_steps:
                self._begin_step(micro.step + 1)

    def _begin_step(self, step: int) -> None:
        train = self.config.train
        set_lambda(self.model, lambda_at(self.config.quantization, step * train.batch_tokens))
        factor = learning_rate_factor(train.schedule, step, self.config.num_steps)
        set_learning_rate(self.optimizer, train.optimizer.learning_rate * factor)
        hold_codes(self.model, DTYPES[train.precision])
        self.sums = {}

    def _accumulate(self, micro: MicroBatch) -> None:
        """Forward and backward of one micro-batch."""
        precision = DTYPES[self.config.train.precision]
        with torch.autocast(self.model.device.type, dtype=precision, enabled=precision != torch.float32):
            output = run_body(self.model, micro.batch, with_layers=self.loss.needs_layers, qkv_layer=self.loss.qkv_layer)
            head_VC = lm_head_weight(self.model)
            progress = micro.step / self.config.num_steps
            loss, parts = self.loss(output, head_VC, micro.batch, micro.signals, micro.num_targets, progress)
        loss.backward()
        for name, value in {"loss": loss.item(), **parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _update(self, step: int) -> dict[str, float]:
        """Clip, step, and return the step's figures.

        Raises:
            FloatingPointError: the loss or the gradient is not finite; the weights stay as they were.
        """
        self.collective.sum_gradients(self.model.parameters())
        figures = self.collective.sum_floats(self.sums)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.gradient_clip, foreach=True).item()
        if not math.isfinite(figures["loss"]) or not math.isfinite(norm):
            raise FloatingPointError(
                f"step {step + 1}: loss {figures['loss']} and gradient norm {norm} must be finite; lower train.optimizer.learning_rate. "
                f"Last good checkpoint: {self.checkpoints.newest() or 'none, the stage starts from its parent'}"
            )
        release_codes(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**figures, "gradient_norm": norm, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _log(self, step: int, figures: dict[str, float], seconds: float, waits: tuple[float, float]) -> None:
        if self.collective.rank:
            return
        train, num_steps = self.config.train, self.config.num_steps
        row: dict[str, Any] = {"step": step + 1, "num_steps": num_steps, "tokens": (step + 1) * train.batch_tokens, **figures}
        row["lambda"] = lambda_at(self.config.quantization, step * train.batch_tokens)
        row["tokens_per_second"] = round(train.batch_tokens / seconds, 1)
        row["data_wait_fraction"], row["teacher_wait_fraction"] = (round(wait / seconds, 4) for wait in waits)
        self.log(**row, progress=(step + 1) / num_steps)

    def _checkpoint(self, micro: MicroBatch) -> None:
        """Commit a checkpoint at every interval; the end of the stage is saved as the student instead."""
        done, train = micro.step + 1, self.config.train
        every = max(1, train.checkpoint_every_tokens // train.batch_tokens)
        if done % every == 0 and done < self.config.num_steps:
            self.checkpoints.save(self.model, self.optimizer, Progress(step=done, tokens=done * train.batch_tokens, cursor=micro.cursor))
