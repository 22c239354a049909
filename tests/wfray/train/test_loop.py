"""The training loop on a packed corpus and a tiny student: restarts to the bit, and one gradient however a batch is cut."""

from pathlib import Path
from typing import Any

import numpy as np
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
from wfray.train import CheckpointStore, Collective, Feed, StepPlan, Trainer
from wfray.train.optimizer import make_optimizer
from wfray.train.schedule import learning_rate_factor


def config(**train: Any) -> TrainConfig:
    tree = {
        "run": "unused",
        "stage": "pretrain",
        "student": "unused",
        "quantization": {"schedule": "linear", "warmup_tokens": 4 * 8 * SEQUENCE_LENGTH},
        "objectives": [{"kind": "cross_entropy"}],
        "train": {
            "tokens": 10 * 8 * SEQUENCE_LENGTH,
            "batch_tokens": 8 * SEQUENCE_LENGTH,
            "micro_rows": 4,
            "checkpoint_every_tokens": 3 * 8 * SEQUENCE_LENGTH,
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
        optimizer = make_optimizer(self.model, settings.train.optimizer)
        store = CheckpointStore(directory / "checkpoints", Collective())
        newest = store.newest()
        progress = store.load(newest, self.model, optimizer) if newest else None
        stream = MixedStream(corpus, seed=0, cursor=progress.cursor if progress else None)
        self.first_step = progress.step if progress else 0
        plan = StepPlan(8, settings.train.micro_rows, settings.num_steps, self.first_step, in_flight=2)
        self.feed = Feed(stream, plan, None, rank=0, world_size=1)
        loss = StageLoss(settings.objectives, None, torch.float32 if settings.train.precision == "float32" else torch.bfloat16)
        self.trainer = Trainer(settings, self.model, optimizer, loss, store, Collective(), self.log)

    def log(self, **row: Any) -> None:
        self.rows.append(row)
        if row["step"] == self.die_at:
            raise Killed

    def run(self) -> dict[int, float]:
        """Train; the loss of every step."""
        self.trainer.run(self.feed)
        return self.losses()

    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in self.rows}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PackedCorpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"large": 40, "small": 10}, {"large": 0.7, "small": 0.3})


@pytest.mark.parametrize("die_at", [1, 4, 6, 9])
def test_a_killed_and_resumed_run_has_the_same_losses_to_the_bit(corpus: PackedCorpus, tmp_path: Path, die_at: int) -> None:
    whole = Attempt(corpus, tmp_path / "whole", config()).run()
    assert len(whole) == 10
    killed = Attempt(corpus, tmp_path / "killed", config(), die_at)
    with pytest.raises(Killed):
        killed.run()
    resumed = Attempt(corpus, tmp_path / "killed", config())
    assert resumed.first_step == die_at // 3 * 3 - (3 if die_at % 3 == 0 else 0)
    losses = {**killed.losses(), **resumed.run()}
    assert losses == whole
    final = Attempt(corpus, tmp_path / "again", config())
    final.run()
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), final.model.parameters(), strict=True))


@pytest.mark.parametrize("micro_rows", [1, 2, 8])
def test_micro_batches_change_the_order_of_summation_only(corpus: PackedCorpus, tmp_path: Path, micro_rows: int) -> None:
    first = []
    for rows in (4, micro_rows):
        attempt = Attempt(corpus, tmp_path / str(rows), config(micro_rows=rows, precision="float32"), die_at=1)
        with pytest.raises(Killed):
            attempt.run()
        first.append(attempt.rows[0])
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=1e-6)
    assert first[0]["gradient_norm"] == pytest.approx(first[1]["gradient_norm"], rel=1e-4)


def test_the_loss_falls_and_lambda_reaches_one(corpus: PackedCorpus, tmp_path: Path) -> None:
    attempt = Attempt(corpus, tmp_path, config(tokens=40 * 8 * SEQUENCE_LENGTH))
    losses = list(attempt.run().values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    assert [row["lambda"] for row in attempt.rows[:6]] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_loss_that_is_not_finite_is_refused_and_the_checkpoint_named(corpus: PackedCorpus, tmp_path: Path) -> None:
    attempt = Attempt(corpus, tmp_path, config(), die_at=5)
    with pytest.raises(Killed):
        attempt.run()
    resumed = Attempt(corpus, tmp_path, config())
    with torch.no_grad():
        resumed.model.model.norm.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"step 4: .*must be finite.*Last good checkpoint: .*step-00000003"):
        resumed.run()


def test_a_truncated_checkpoint_is_refused_with_the_mend(corpus: PackedCorpus, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Attempt(corpus, tmp_path, config(), die_at=5).run()
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    tensors = max((newest / "tensors").glob("*.distcp"), key=lambda path: path.stat().st_size)
    tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is truncated or of another model .*; delete it to start this stage again"):
        Attempt(corpus, tmp_path, config())


def test_a_half_written_checkpoint_is_never_taken_for_a_whole_one(corpus: PackedCorpus, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-00000009.partial" / "tensors").mkdir(parents=True)
    assert Attempt(corpus, tmp_path, config()).first_step == 0


def test_a_batch_that_does_not_divide_is_refused(corpus: PackedCorpus) -> None:
    with pytest.raises(ValueError, match="8 rows does not divide into micro-batches of 3 rows on 1 workers"):
        Feed(MixedStream(corpus, seed=0), StepPlan(8, 3, 1, 0, 1), None, 0, 1)


def test_workers_take_disjoint_slices_of_the_same_global_batch(corpus: PackedCorpus) -> None:
    def rows(rank: int, world_size: int) -> list[torch.Tensor]:
        feed = Feed(MixedStream(corpus, seed=0), StepPlan(8, 2, 3, 0, 2), None, rank, world_size)
        return [micro.batch["input_ids"] for micro in feed]

    alone = torch.cat(rows(0, 1)).view(3, 8, -1)
    halves = [torch.cat(rows(rank, 2)).view(3, 4, -1) for rank in range(2)]
    assert torch.equal(alone, torch.cat(halves, dim=1))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.55]),
        ("cosine", [0.5, 1.0, 1.0, 0.9657, 0.8682, 0.7222, 0.55, 0.3778, 0.2318, 0.1343]),
    ],
)
def test_learning_rates(shape: str, wanted: list[float]) -> None:
    settings = config(schedule={"shape": shape, "warmup_fraction": 0.2, "decay_fraction": 0.2, "final_fraction": 0.1}).train.schedule
    assert [learning_rate_factor(settings, step, 10) for step in range(10)] == pytest.approx(wanted, abs=1e-4)
