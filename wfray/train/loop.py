"""The training loop of stages 1.9, 2 and 3: the stage's objectives on micro-batches, one optimizer step a global batch.

    for each micro-batch: forward, backward; at the end of its step:
        refuse the step if loss or gradient is not finite, else clip, step, QK-clip, average
        measure for early stopping, log, checkpoint

Master weights, gradients and optimizer states are float32; products run in bfloat16 under autocast. Gradients are sums over tokens
divided by the number of such tokens in the global batch, so cutting it into micro-batches or over workers changes the order of
summation only. For equal configuration, seed and number of threads the losses repeat to the bit, also across a restart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wfray.config.optimizer import MuonClip
from wfray.config.train import TrainConfig
from wfray.objectives.stage_loss import StageLoss
from wfray.quant import lambda_at, set_lambda
from wfray.student.forward import Forward, lm_head_weight, run_body
from wfray.train.average import averaged, swap_average, update_average
from wfray.train.checkpoints import CheckpointStore, Progress
from wfray.train.clipping import Clipper, global_norm
from wfray.train.collective import Collective
from wfray.train.feed import Feed, MicroBatch, on_device
from wfray.train.memory import explain_out_of_memory
from wfray.train.mixing import mixture_figures
from wfray.train.optimizer import set_learning_rate
from wfray.train.pace import Pace
from wfray.train.qk_clip import QKClip
from wfray.train.ratios import gradient_ratios
from wfray.train.schedule import learning_rate_factor
from wfray.train.sharding import Replica
from wfray.train.state import RandomState, TrainingState
from wfray.train.stopping import EarlyStop, HeldoutLoss

MAX_REFUSED = 3
"""Steps in a row that may not be finite before the run stops."""


@dataclass
class Trainer:
    """One worker of a stage."""

    config: TrainConfig
    replica: Replica
    optimizer: torch.optim.Optimizer
    loss: StageLoss
    checkpoints: CheckpointStore
    collective: Collective
    log: Callable[..., None]
    """Called with each step's figures, on rank 0 only."""
    state: TrainingState = field(default_factory=TrainingState)
    """As the checkpoint has it from which the stage goes on."""
    forward: Forward = run_body
    """How the student is run on a packed batch."""
    announced_losses: Callable[[], int] | None = None
    """Asked by all workers after every step: how many of their machines are about to be taken away, as far as it is known. When the
    number grows a checkpoint is written at once; training goes on until they are gone."""

    def __post_init__(self) -> None:
        train = self.config.train
        self.model, self.precision = self.replica.model, self.replica.precision
        self.clipper = Clipper(train.clipping, self.state.clipping)
        self.qk_clip = QKClip(self.model, train.optimizer, self.collective) if isinstance(train.optimizer, MuonClip) else None
        self.early_stop: EarlyStop | None = None
        self.sums: dict[str, float] = {}
        self.ratios: dict[str, float] = {}
        self.num_announced = 0

    def run(self, feed: Feed) -> None:
        """Train to the end of the feed or until early stopping ends the stage; the model then has the weights to be saved.

        Raises:
            FloatingPointError: three steps in a row were not finite.
            ValueError: memory ran out, a checkpoint could not be written, or there are too few held-out rows.
        """
        self._resume(feed)
        with explain_out_of_memory(self.config.train), self.checkpoints:
            self._train(feed)
        if self.config.train.average:
            swap_average(self.optimizer)

    def _train(self, feed: Feed) -> None:
        self._begin_step(feed.plan.first_step)
        pace = Pace(feed)
        for micro in feed:
            self._accumulate(micro)
            if not micro.is_last:
                continue
            figures = self._update(micro.step) | pace.figures(self.config.train.batch_tokens) | mixture_figures(feed, micro)
            if self.early_stop and self._is_settled(micro.step):
                figures |= self.early_stop.after_step(micro.step, figures.get("loss"))
            self._log(micro.step, figures)
            if "stopped" in figures or micro.step + 1 == self.config.num_steps:
                return
            self._checkpoint(micro)
            pace.start()
            self._begin_step(micro.step + 1)

    def _resume(self, feed: Feed) -> None:
        """Everything as it stood before the step to come."""
        self.model.train()
        if len(self.state.random) == self.collective.world_size:
            self.state.random[self.collective.rank].restore()
        if stop := self.config.train.early_stopping:
            corpus = feed.stream.corpus
            heldout = HeldoutLoss(corpus, self.config.all_weights or corpus.weights, stop) if stop.kind == "heldout" else None
            measure = partial(self._heldout_loss, heldout) if heldout else None
            self.early_stop = EarlyStop(stop, self.state.stopping, self.config.train.batch_tokens, measure)

    def _lambda(self, step: int) -> float:
        return lambda_at(self.config.quantization, step * self.config.train.batch_tokens)

    def _is_settled(self, step: int) -> bool:
        """Whether lambda has its final value."""
        return self.config.quantization.schedule == "none" or self._lambda(step) == 1

    def _begin_step(self, step: int) -> None:
        train = self.config.train
        set_lambda(self.model, self._lambda(step))
        factor = learning_rate_factor(train.schedule, step, self.config.num_steps)
        set_learning_rate(self.optimizer, train.optimizer.learning_rate * factor)
        self.replica.hold_codes()
        self.sums, self.ratios = {}, {}

    def _accumulate(self, micro: MicroBatch) -> None:
        """Forward and backward of one micro-batch."""
        micro.batch, micro.signals = on_device((micro.batch, micro.signals), self.model.device)
        every = self.config.train.gradient_ratio_every_steps
        if every and not self.sums and micro.step % every == 0:
            self.ratios = gradient_ratios(self.model, self.loss.objectives, lambda kind: self._forward(micro, only=kind)[0])
        loss, parts = self._forward(micro)
        loss.backward()
        for name, value in {"loss": loss.item(), **parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _forward(self, micro: MicroBatch, only: str | None = None) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch, or of one of its terms, and its parts."""
        return self.replica.forward(partial(self._compute, micro, only), is_last=micro.is_last or only is not None)

    def _compute(self, micro: MicroBatch, only: str | None) -> tuple[Tensor, dict[str, float]]:
        observe = self.qk_clip.observe if self.qk_clip and micro.is_last and only is None else None
        with torch.autocast(self.model.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            layers, qkv_layer = self.loss.needs_layers, self.loss.qkv_layer
            output = self.forward(self.model, micro.batch, with_layers=layers, qkv_layer=qkv_layer, observe=observe)
            head_VC = lm_head_weight(self.model)
            progress = micro.step / self.config.num_steps
            return self.loss(output, head_VC, micro.batch, micro.signals, micro.totals, progress, only)

    def _update(self, step: int) -> dict[str, Any]:
        """Take the step or refuse it; its figures."""
        figures: dict[str, Any] = self.collective.sum_floats(self.sums) | self.ratios
        norm = global_norm(self.model.parameters())
        if self.config.train.learned == "all":
            self.replica.release_codes()
        if math.isfinite(figures["loss"]) and math.isfinite(norm):
            figures |= self._take(norm)
        else:
            figures = self._refuse(step, figures["loss"], norm)
        self.optimizer.zero_grad(set_to_none=True)
        return {**figures, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _take(self, norm: float) -> dict[str, float]:
        figures = {"gradient_norm": norm, "clipped_norm": self.clipper.clip(self.model.parameters(), norm)}
        self.optimizer.step()
        if self.qk_clip:
            figures["attention_logit"] = self.qk_clip.clip()
        if average := self.config.train.average:
            update_average(self.optimizer, average.decay)
        self.state.num_refused = 0
        return figures

    def _refuse(self, step: int, loss: float, norm: float) -> dict[str, Any]:
        """Leave weights, optimizer, average and statistics as they are, and go on with the stream.

        Raises:
            FloatingPointError: it is the third step in a row.
        """
        if self.qk_clip:
            self.qk_clip.forget()
        self.state.num_refused += 1
        reason = f"step {step + 1}: loss {loss} and gradient norm {norm} must be finite"
        if self.state.num_refused >= min(MAX_REFUSED, self.config.num_steps):
            raise FloatingPointError(
                f"{reason}, as in the {self.state.num_refused - 1} steps before; train it anew under another name with a lower "
                "train.optimizer.learning_rate. "
                f"Last good checkpoint: {self.checkpoints.newest() or 'none, the stage starts from its parent'}"
            )
        return {"refused": reason}

    def _heldout_loss(self, heldout: HeldoutLoss) -> float:
        """Of the weights that would be saved; every worker measures the same rows, and all agree on the mean."""
        with averaged(self.optimizer, is_on=self.config.train.average is not None):
            loss = self.replica.evaluate(partial(heldout.measure, self.model, self.config.train.micro_rows, self.precision, self.forward))
        return self.collective.sum_floats({"loss": loss})["loss"] / self.collective.world_size

    def _log(self, step: int, figures: dict[str, Any]) -> None:
        if self.collective.rank:
            return
        train, num_steps = self.config.train, self.config.num_steps
        row: dict[str, Any] = {"step": step + 1, "num_steps": num_steps, "tokens": (step + 1) * train.batch_tokens, **figures}
        row |= {"lambda": self._lambda(step), "num_workers": self.collective.world_size}
        self.log(**row, progress=1.0 if "stopped" in figures else (step + 1) / num_steps)

    def _checkpoint(self, micro: MicroBatch) -> None:
        """Begin a checkpoint at every interval, and before a machine is lost."""
        self.checkpoints.check()
        done, train = micro.step + 1, self.config.train
        is_urgent = self._is_urgent()
        is_due = done % (train.checkpoint_every_tokens // train.batch_tokens) == 0
        if is_due or is_urgent:
            self.state.random = self.collective.gather(RandomState.capture())
            progress = Progress(step=done, tokens=done * train.batch_tokens, cursor=micro.cursor, state=self.state.model_copy(deep=True))
            self.checkpoints.save(self.model, self.optimizer, progress)
            if is_urgent:
                self.checkpoints.finish()

    def _is_urgent(self) -> bool:
        """Whether the loss of another machine has been announced."""
        before, self.num_announced = self.num_announced, self.announced_losses() if self.announced_losses else 0
        return self.num_announced > before
