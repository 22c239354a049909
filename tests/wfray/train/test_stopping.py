"""Early stopping: when it judges a stage to be over, what it measures, and how the stage then ends."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.wfray.train.conftest import STEP, Attempt, config
from wfray.config.optimizer import StopOnTrainingLoss
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import heldout
from wfray.evals import total
from wfray.evals.perplexity import score_batch
from wfray.train.feed import as_tensors
from wfray.train.stopping import EarlyStop, StoppingState


def reasons(losses: list[float], **settings: Any) -> list[str | None]:
    config = StopOnTrainingLoss.model_validate({"kind": "training", "every_tokens": 8, **settings})
    stop = EarlyStop(config, StoppingState(), batch_tokens=8, measure=None)
    return [stop.after_step(step, loss).get("stopped") for step, loss in enumerate(losses)]


def test_patience_counts_measurements_in_a_row_without_enough_improvement() -> None:
    assert reasons([5, 4, 4.1, 4.2, 3.9, 3.9, 4, 4], patience=3)[:7] == [None] * 7
    assert reasons([5, 4, 4.1, 4.2, 3.9, 3.9, 4, 4], patience=3)[7] == (
        "the training loss has not improved on 3.9000 (step 5) by more than 0.0 in 3 measurements"
    )
    assert [bool(reason) for reason in reasons([5, 4.95, 4.91, 4.8], patience=2, min_improvement=0.1)] == [False, False, True, False]


def test_the_training_loss_is_averaged_over_the_steps_between_measurements() -> None:
    stop = EarlyStop(StopOnTrainingLoss(kind="training", every_tokens=24), StoppingState(), batch_tokens=8, measure=None)
    found = [stop.after_step(step, loss) for step, loss in enumerate([3.0, None, 5.0, 1.0, 2.0, 6.0])]
    assert found == [{}, {}, {"training_loss": 4.0}, {}, {}, {"training_loss": 3.0}]


def stopping(**settings: Any) -> dict[str, Any]:
    return {"every_tokens": 2 * STEP, "patience": 2, "min_improvement": 100.0, **settings}


def test_the_heldout_loss_is_that_of_the_average_and_agrees_with_the_evaluation(corpus: PackedCorpus, tmp_path: Path) -> None:
    stop = {"kind": "heldout", "every_tokens": 10 * STEP // 3, "rows_per_source": 3, "patience": 1}
    attempt = Attempt(corpus, tmp_path, config(tokens=9 * STEP, average={"decay": 0.8}, early_stopping=stop))
    attempt.run()
    batches = [as_tensors(heldout(corpus, name, 3), slice(None)) for name in corpus.source_names]
    wanted = total(score_batch(attempt.model.eval(), batch, torch.bfloat16) for batch in batches).loss
    assert attempt.rows[-1]["heldout_loss"] == pytest.approx(wanted, rel=1e-3)
    assert [row["step"] for row in attempt.rows if "heldout_loss" in row] == [6, 9], "step 3 comes before lambda is 1"


@pytest.mark.parametrize("kind", ["heldout", "training"])
def test_the_stage_ends_with_the_reason_in_its_last_row(corpus: PackedCorpus, tmp_path: Path, kind: str) -> None:
    extra = {"rows_per_source": 2} if kind == "heldout" else {}
    attempt = Attempt(corpus, tmp_path, config(tokens=40 * STEP, early_stopping=stopping(kind=kind, **extra)))
    attempt.run()
    measured = [row["step"] for row in attempt.rows if f"{kind}_loss" in row]
    assert measured == [6, 8, 10] and attempt.rows[-1]["step"] == 10, "lambda is 1 from step 5 on"
    assert attempt.rows[-1]["stopped"].startswith(f"the {kind} loss has not improved on") and attempt.rows[-1]["progress"] == 1.0
    assert not any("stopped" in row for row in attempt.rows[:-1])


def test_a_stage_that_was_over_when_it_died_ends_at_the_same_step(corpus: PackedCorpus, tmp_path: Path) -> None:
    settings = config(tokens=40 * STEP, checkpoint_every_tokens=2 * STEP, early_stopping=stopping(kind="training"))
    first = Attempt(corpus, tmp_path, settings)
    first.run()
    second = Attempt(corpus, tmp_path, settings)
    second.run()
    assert (second.first_step, first.rows[-1]["step"], second.rows[-1]["step"]) == (8, 10, 10)
    assert second.rows[-1]["stopped"] == first.rows[-1]["stopped"]


def test_full_precision_is_measured_from_the_first_step(corpus: PackedCorpus, tmp_path: Path) -> None:
    settings = config({"quantization": {"schedule": "none"}}, tokens=40 * STEP, early_stopping=stopping(kind="training"))
    attempt = Attempt(corpus, tmp_path, settings)
    attempt.run()
    assert [row["step"] for row in attempt.rows if "training_loss" in row] == [2, 4, 6]


def test_measuring_leaves_training_as_it_is(corpus: PackedCorpus, tmp_path: Path) -> None:
    plain = Attempt(corpus, tmp_path / "plain", config(average={"decay": 0.5})).run()
    stop = {"kind": "heldout", "every_tokens": STEP, "rows_per_source": 2, "patience": 8}
    assert Attempt(corpus, tmp_path / "measured", config(average={"decay": 0.5}, early_stopping=stop)).run() == plain


def test_too_few_heldout_rows_are_named(corpus: PackedCorpus, tmp_path: Path) -> None:
    settings = config(early_stopping=stopping(kind="heldout", rows_per_source=10_000))
    with pytest.raises(ValueError, match="source large has .* heldout rows"):
        Attempt(corpus, tmp_path, settings).run()
