"""The training loop on a packed corpus and a tiny student: restarts to the bit, and one gradient however a batch is cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.wfray.train.conftest import STEP, Attempt, Killed, config, count_related
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.objectives import Totals
from wfray.quant import bit_linears, quantize_weight
from wfray.train import Feed, StepPlan
from wfray.train.feed import MicroBatch

UNQUANTIZED = {"learned": "unquantized", "optimizer": {"learning_rate": 1e-2, "embedding_learning_rate": 3e-3}}
EVERYTHING: dict[str, Any] = {
    "optimizer": {"kind": "muon_clip", "learning_rate": 1e-2, "tau": 2.0},
    "clipping": {"kind": "zclip", "warmup_steps": 4, "threshold": 0.01},
    "average": {"decay": 0.9},
    "early_stopping": {"kind": "heldout", "every_tokens": 2 * STEP, "rows_per_source": 2, "patience": 3},
}


@pytest.mark.parametrize(
    "settings", [{}, EVERYTHING, {"learned": "norms"}, UNQUANTIZED], ids=["adamw", "everything", "norms", "unquantized"]
)
@pytest.mark.parametrize("die_at", [1, 4, 6, 9])
def test_a_killed_and_resumed_run_has_the_same_rows_to_the_bit(
    corpus: PackedCorpus, tmp_path: Path, settings: dict[str, Any], die_at: int
) -> None:
    uninterrupted = Attempt(corpus, tmp_path / "whole", config(**settings))
    uninterrupted.run()
    assert len(uninterrupted.rows) == 10
    if settings is EVERYTHING:
        assert uninterrupted.rows[0]["attention_logit"] > 2.0, "QK-clip has something to do"
        assert any(row["clipped_norm"] < row["gradient_norm"] for row in uninterrupted.rows[4:]), "and so has ZClip"
    killed = Attempt(corpus, tmp_path / "killed", config(**settings), die_at)
    with pytest.raises(Killed):
        killed.run()
    torch.manual_seed(die_at)
    resumed = Attempt(corpus, tmp_path / "killed", config(**settings))
    assert resumed.first_step == die_at // 3 * 3 - (3 if die_at % 3 == 0 else 0)
    resumed.run()
    assert {**killed.figures(), **resumed.figures()} == uninterrupted.figures()
    assert resumed.trainer.state.clipping == uninterrupted.trainer.state.clipping
    assert resumed.trainer.state.stopping == uninterrupted.trainer.state.stopping
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), uninterrupted.model.parameters(), strict=True))


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
    attempt = Attempt(corpus, tmp_path, config(tokens=40 * STEP))
    losses = list(attempt.run().values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    assert [row["lambda"] for row in attempt.rows[:6]] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(("learned", "names"), [("norms", ("norm",)), ("unquantized", ("norm", "embed_tokens", "lm_head"))])
def test_what_is_not_ternary_learns_and_codes_stay(
    corpus: PackedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: str, names: tuple[str, ...]
) -> None:
    quantized: list[Tensor] = []
    monkeypatch.setattr("wfray.quant.bitlinear.quantize_weight", lambda weight: quantized.append(weight) or quantize_weight(weight))
    attempt = Attempt(corpus, tmp_path, config(learned=learned, tokens=40 * STEP))
    before = {name: parameter.detach().clone() for name, parameter in attempt.model.named_parameters()}
    losses = list(attempt.run().values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    moved = {name for name, parameter in attempt.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if any(part in name for part in names)}
    assert len(quantized) == len(bit_linears(attempt.model))
    assert all(parameter.grad is None for name, parameter in attempt.model.named_parameters() if name not in moved)


def test_a_loss_that_is_not_finite_is_refused_and_the_checkpoint_named(corpus: PackedCorpus, tmp_path: Path) -> None:
    attempt = Attempt(corpus, tmp_path, config(), die_at=5)
    with pytest.raises(Killed):
        attempt.run()
    resumed = Attempt(corpus, tmp_path, config())
    with torch.no_grad():
        resumed.model.model.norm.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"step 6: .* finite, as in the 2 steps before; .*Last good checkpoint: .*step-00000003"):
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
    def taken(rank: int, world_size: int) -> list[MicroBatch]:
        return list(Feed(MixedStream(corpus, seed=0), StepPlan(8, 2, 3, 0, 2), None, rank, world_size, count_related=count_related))

    def rows(batches: list[MicroBatch], share: int) -> torch.Tensor:
        return torch.cat([micro.batch["input_ids"] for micro in batches]).view(3, share, -1)

    alone, halves = taken(0, 1), [taken(rank, 2) for rank in range(2)]
    assert torch.equal(rows(alone, 8), torch.cat([rows(half, 4) for half in halves], dim=1))
    for step in range(3):
        batches = [micro.batch for micro in alone if micro.step == step]
        expected = Totals(sum(int((batch["targets"] != -100).sum()) for batch in batches), sum(map(count_related, batches)))
        assert {micro.totals for batches in [alone, *halves] for micro in batches if micro.step == step} == {expected}
        assert 0 < expected.num_targets < expected.num_related  # type: ignore[operator]
