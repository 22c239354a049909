"""A training stage on a packed corpus and a tiny student, as a worker runs it; an attempt can be killed and taken up again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.wfray.data.conftest import SEQUENCE_LENGTH, write_corpus
from tests.wfray.student.conftest import packed, tiny_model
from wfray.config.convert import Subln
from wfray.config.train import TrainConfig
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.objectives import StageLoss, num_related
from wfray.quant.precision import dtype_of
from wfray.student import convert
from wfray.student.forward import run_body
from wfray.student.kind import CausalStudent
from wfray.teacher.signals import Signals
from wfray.train import CheckpointStore, Collective, Feed, Replica, StepPlan, Trainer
from wfray.train.influence import StudentProbe, make_mixer
from wfray.train.optimizer import freeze, make_optimizer
from wfray.train.state import TrainingState

__all__ = ["packed"]

STEP = 8 * SEQUENCE_LENGTH
"""Tokens of a step."""


def config(stage: dict[str, Any] | None = None, **train: Any) -> TrainConfig:
    """A stage of ten steps; `stage` changes it, `train` its training."""
    tree = {
        "run": "unused",
        "stage": "pretrain",
        "student": "unused",
        "quantization": {"schedule": "linear", "warmup_tokens": 4 * STEP},
        "objectives": [{"kind": "cross_entropy"}],
        "train": {
            "tokens": 10 * STEP,
            "batch_tokens": STEP,
            "micro_rows": 4,
            "checkpoint_every_tokens": 3 * STEP,
            "optimizer": {"learning_rate": 1e-2},
            **train,
        },
        **(stage or {}),
    }
    return TrainConfig.parse(tree, "test")


class Killed(Exception):
    """Stands for the end of the process."""


class LocalTeacher:
    """A full-precision model in this process that answers at once."""

    def __init__(self) -> None:
        self.model = tiny_model("llama")
        with torch.no_grad():
            torch.manual_seed(1)
            for parameter in self.model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def request(self, batch: dict[str, np.ndarray]) -> "LocalAnswer":
        with torch.no_grad():
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            output = run_body(self.model, tensors, with_layers=True, qkv_layer=1)
        assert output.qkv is not None
        return LocalAnswer({"hidden": output.hidden_BTC, "layers": torch.stack(output.layers), "qkv": output.qkv})


@dataclass
class LocalAnswer:
    signals: Signals

    def result(self) -> Signals:
        return self.signals


def count_related(batch: dict[str, Tensor]) -> int:
    """Tokens of documents of more than one token."""
    return num_related(CausalStudent().related(batch))


class Attempt:
    """One attempt at a stage, as a worker makes it; `die_at` raises when that step has been logged."""

    def __init__(
        self, corpus: PackedCorpus, directory: Path, settings: TrainConfig, die_at: int | None = None, teacher: LocalTeacher | None = None
    ) -> None:
        torch.use_deterministic_algorithms(True)
        self.rows: list[dict[str, Any]] = []
        self.die_at = die_at
        self.model = convert(tiny_model("llama"), Subln(init="ones"))
        collective, precision = Collective(), dtype_of(settings.train.precision)
        replica = Replica(self.model, precision, collective)
        freeze(self.model, settings.train.learned)
        optimizer = make_optimizer(self.model, settings.train)
        store = CheckpointStore(directory / "checkpoints", collective)
        newest = store.newest()
        progress = store.load(newest, self.model, optimizer) if newest else None
        cursor = progress.cursor if progress else None
        stream = MixedStream(corpus, weights=None if cursor else settings.first_weights, seed=0, cursor=cursor)
        self.first_step = progress.step if progress else 0
        rows = settings.train.batch_tokens // SEQUENCE_LENGTH
        plan = StepPlan(rows, settings.train.micro_rows, settings.num_steps, self.first_step, in_flight=2)
        probe = StudentProbe(replica, settings.train.micro_rows, collective)
        mixer = make_mixer(settings, probe, corpus)
        self.feed = Feed(stream, plan, teacher, collective.rank, collective.world_size, mixer, count_related)
        loss = StageLoss(settings.objectives, teacher.model.lm_head.weight.detach() if teacher else None, precision)
        state = progress.state if progress else TrainingState()
        self.trainer = Trainer(settings, replica, optimizer, loss, store, collective, self.log, state)

    def log(self, **row: Any) -> None:
        self.rows.append(row)
        if row["step"] == self.die_at:
            raise Killed

    def run(self) -> dict[int, float]:
        """Train; the loss of every step."""
        self.trainer.run(self.feed)
        return self.losses()

    def figures(self) -> dict[int, dict[str, Any]]:
        """Every step's row without what depends on the clock."""
        clock = {"tokens_per_second", "data_wait_fraction", "teacher_wait_fraction", "mixing_fraction"}
        return {row["step"]: {name: value for name, value in row.items() if name not in clock} for row in self.rows}

    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in self.rows if "loss" in row}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PackedCorpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"large": 40, "small": 10}, {"large": 0.7, "small": 0.3})
