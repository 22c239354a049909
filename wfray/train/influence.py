"""What the student itself says of each source: the influence of training on it on a probe set, or its training loss.

Influence, DataInf (arXiv 2310.00902) to first order, over the blocks b of embedding and LM head (one block where they are tied):

    score(source) = sum_b <g_source, g_probe> / (damping * mean over sources of |g|^2 + |g_source|^2)

`g` is the gradient of the mean cross-entropy over some rows: of the source those that it would serve next, of the probe held-out
ones. Embedding and head see every token, take part in no quantization and cost nothing beyond the student's own backward pass;
no second model and no copy of the student is held, only two such gradients at a time: 8 bytes a weight of the blocks.

Every worker takes its part of the rows and gradients are summed as in training, so all see the same scores.
"""

from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from wfray.config.mixing import Curriculum, InfluenceMixing
from wfray.config.train import TrainConfig
from wfray.data.batch import NO_TARGET, PackedBatch
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream, heldout, joined, normalise
from wfray.objectives.linear_losses import linear_losses
from wfray.student.forward import hidden_states, lm_head_weight
from wfray.train.collective import Collective, whole
from wfray.train.feed import Mixer, as_tensors
from wfray.train.mixing import Figures, LearningMixer, PhaseMixer, follow_bandit, follow_influence
from wfray.train.sharding import Replica


class StudentProbe:
    """Losses and gradients of the student on rows outside the training batches."""

    def __init__(self, replica: Replica, micro_rows: int, collective: Collective) -> None:
        self.replica, self.model, self.micro_rows, self.collective = replica, replica.model, micro_rows, collective

    def loss(self, rows: PackedBatch) -> float:
        """Mean cross-entropy over some rows, nats a token."""
        with torch.no_grad():
            mine = sum(loss.item() for loss in self._losses(rows))
        return self.collective.sum_floats({"loss": mine})["loss"]

    def gradients(self, rows: PackedBatch) -> list[Tensor]:
        """The gradient of that loss by embedding and LM head, once where they are tied."""
        for loss in self._losses(rows):
            loss.backward()
        blocks = self._blocks()
        gradients = [block.grad for block in blocks if block.grad is not None]
        self.model.zero_grad(set_to_none=True)
        return gradients

    def _blocks(self) -> list[nn.Parameter]:
        weights = (self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight)
        return list(dict.fromkeys(cast(nn.Parameter, weight) for weight in weights))

    def _losses(self, rows: PackedBatch) -> Iterator[Tensor]:
        """This worker's terms of the mean loss, one a micro-batch."""
        num_targets = int((rows["targets"] != NO_TARGET).sum())
        share = len(rows["input_ids"]) // self.collective.world_size
        start, end = self.collective.rank * share, (self.collective.rank + 1) * share
        for first in range(start, end, self.micro_rows):
            batch = as_tensors(rows, slice(first, min(first + self.micro_rows, end)))
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            yield self.replica.forward(partial(self._loss, batch, num_targets), is_last=first + self.micro_rows >= end)

    def _loss(self, batch: dict[str, Tensor], num_targets: int) -> Tensor:
        precision = self.replica.precision
        with torch.autocast(self.model.device.type, dtype=precision, enabled=precision != torch.float32):
            hidden_TC = hidden_states(self.model, batch).flatten(0, 1)
            head_VC, targets_T = lm_head_weight(self.model), batch["targets"].flatten()
            return linear_losses(hidden_TC, head_VC, targets_T, num_targets, ce_weight=1.0, dtype=precision).total


def influence_scores(probe: StudentProbe, config: InfluenceMixing, stream: MixedStream, sources: list[str]) -> Figures:
    """The score of each source; see the module docstring."""
    wanted = probe.gradients(joined([heldout(stream.corpus, name, config.probe_rows) for name in config.probe]))
    products: dict[str, list[tuple[float, float]]] = {}
    for name in sources:
        gradients = probe.gradients(stream.peek(name, config.rows))
        products[name] = [(inner(own, other), inner(own, own)) for own, other in zip(gradients, wanted, strict=True)]
    return damped_scores(products, config.damping)


def damped_scores(products: dict[str, list[tuple[float, float]]], damping: float) -> Figures:
    """Scores from `<g_source, g_probe>` and `|g_source|^2` of each source and block."""
    norms = [[norm for _, norm in blocks] for blocks in products.values()]
    regularizers = [damping * sum(block) / len(block) for block in zip(*norms, strict=True)]
    return {
        name: sum(product / (regularizer + norm) for (product, norm), regularizer in zip(blocks, regularizers, strict=True))
        for name, blocks in products.items()
    }


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two gradients, summed in float64."""
    return whole((a * b).sum(dtype=torch.float64)).item()


def next_losses(probe: StudentProbe, num_rows: int, stream: MixedStream, sources: list[str]) -> Figures:
    """The training loss of each source on the rows that it would serve next."""
    return {name: probe.loss(stream.peek(name, num_rows)) for name in sources}


def make_mixer(config: TrainConfig, probe: StudentProbe, corpus: PackedCorpus) -> Mixer | None:
    """The mixer of a stage; None where the weights stay.

    Raises:
        ValueError: a phase or probe does not name the corpus's sources, or the probe has fewer held-out rows.
    """
    match config.mixing:
        case None:
            return None
        case Curriculum() as curriculum:
            for phase in curriculum.phases:
                normalise(phase.weights, corpus.source_names)
            return PhaseMixer(curriculum, config.num_steps)
        case InfluenceMixing() as influence:
            for name in influence.probe:
                heldout(corpus, name, influence.probe_rows)
            return LearningMixer(influence, partial(influence_scores, probe, influence), partial(follow_influence, influence))
        case online:
            return LearningMixer(online, partial(next_losses, probe, online.rows), partial(follow_bandit, online))
