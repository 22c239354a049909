"""A training stage on a packed corpus and a tiny student, as a worker runs it; an attempt can be killed and taken up again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.wfray.data.conftest import SEQUENCE_LENGTH, write_corpus
from tests.wfray.student.conftest import tiny_model
from wfray.config.convert import Subln
from wfray.config.train import TrainConfig
from wfray.data.shards import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.objectives import StageLoss
from wfray.student import convert
from wfray.train import CheckpointStore, Collective, Feed, Replica, StepPlan, Trainer
from wfray.train.influence import StudentProbe, make_mixer
from wfray.train.loop import DTYPES
from wfray.train.optimizer import make_optimizer
from wfray.train.state import TrainingState

STEP = 8 * SEQUENCE_LENGTH
"""Tokens of a step."""


def config(**train: Any) -> TrainConfig:
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
    }
    return TrainConfig.parse(tree, "test")


class Killed(Exception):
    """Stands for the end of the process."""


class Attempt:
    """One attempt at a stage, as a worker makes it; `die_at` raises when that step has been logged."""

    def __init__(self, corpus: PackedCorpus, directory: Path, settings: TrainConfig, die_at: int | None = None) -> None:
        torch.use_deterministic_algorithms(True)
        self.rows: list[dict[str, Any]] = []
        self.die_at = die_at
        self.model = convert(tiny_model("llama"), Subln(init="ones"))
        collective, precision = Collective(), DTYPES[settings.train.precision]
        replica = Replica(self.model, precision, collective)
        optimizer = make_optimizer(self.model, settings.train)
        store = CheckpointStore(directory / "checkpoints", collective)
        newest = store.newest()
        progress = store.load(newest, self.model, optimizer) if newest else None
        cursor = progress.cursor if progress else None
        stream = MixedStream(corpus, weights=None if cursor else settings.first_weights, seed=0, cursor=cursor)
        self.first_step = progress.step if progress else 0
        plan = StepPlan(8, settings.train.micro_rows, settings.num_steps, self.first_step, in_flight=2)
        probe = StudentProbe(replica, settings.train.micro_rows, collective)
        self.feed = Feed(stream, plan, None, collective.rank, collective.world_size, make_mixer(settings, probe, corpus))
        loss = StageLoss(settings.objectives, None, precision)
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
        return {row["step"]: row["loss"] for row in self.rows}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PackedCorpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"large": 40, "small": 10}, {"large": 0.7, "small": 0.3})
