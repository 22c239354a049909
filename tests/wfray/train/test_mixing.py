"""Weights that change during a stage: the formulas, and the same changes at the same rows whatever was killed or prefetched."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.wfray.train.conftest import STEP, Attempt, Killed, config
from wfray.config.mixing import InfluenceMixing, OnlineMixing
from wfray.config.train import TrainConfig
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream, Mixture
from wfray.train import Feed, StepPlan
from wfray.train.mixing import follow_bandit, follow_influence

FIRST = {"until": 0.4, "weights": {"large": 1, "small": 0}}
LAST = {"until": 1, "weights": {"large": 1, "small": 3}}
PHASES = {"kind": "phases", "phases": [FIRST, LAST]}
INFLUENCE = {"kind": "influence", "probe": ["small"], "probe_rows": 4, "rows": 2, "every_steps": 2}
ODM = {"kind": "odm", "rows": 2, "every_steps": 2}


def with_mixing(mixing: dict[str, Any], **changes: Any) -> TrainConfig:
    return TrainConfig.parse({**config(**changes.pop("train", {})).model_dump(), "mixing": mixing, **changes}, "test")


def began_with(**weights: float) -> list[Mixture]:
    return [Mixture(sample_index=0, weights=weights, tokens=dict.fromkeys(weights, 0))]


def test_influence_moves_the_weights_towards_bounded_positive_scores() -> None:
    settings = InfluenceMixing(kind="influence", probe=["a"], rate=0.25, smallest=0.1, largest=0.7)
    weights, learned_from = follow_influence(settings, began_with(a=0.5, b=0.3, c=0.2), {"a": 9.0, "b": 1.0, "c": -5.0})
    assert learned_from == {"a": 9.0, "b": 1.0, "c": -5.0}
    wanted = {"a": 0.7 / 0.9, "b": 0.1 / 0.9, "c": 0.1 / 0.9}
    assert weights == pytest.approx({"a": 0.375 + 0.25 * wanted["a"], "b": 0.225 + 0.25 * wanted["b"], "c": 0.15 + 0.25 * wanted["c"]})
    assert follow_influence(settings, began_with(a=0.6, b=0.4), {"a": -1.0, "b": 0.0})[0] == {"a": 0.6, "b": 0.4}


def test_the_bandit_follows_the_paper_step_by_step() -> None:
    settings, history, average = OnlineMixing(kind="odm", smoothing=0.8), began_with(a=0.2, b=0.3, c=0.5), {"a": 0.0, "b": 0.0, "c": 0.0}
    for step in range(1, 30):
        losses = {"a": 2.0, "b": 3.0 + 1 / step, "c": 5.0 - step / 10}
        weights, learned_from = follow_bandit(settings, history, losses)
        average = {name: 0.8 * average[name] + 0.2 * losses[name] for name in losses}
        now = min(1 / 3, math.sqrt(math.log(3) / (3 * step)))
        last = min(1 / 3, math.sqrt(math.log(3) / (3 * (step - 1)))) if step > 1 else 1 / 3
        total = sum(math.exp(last * value) for value in average.values())
        assert weights == pytest.approx({name: (1 - 3 * now) * math.exp(last * average[name]) / total + now for name in losses})
        assert learned_from == pytest.approx(average) and sum(weights.values()) == pytest.approx(1)
        history = [*history, Mixture(sample_index=step, weights=weights, tokens={}, learned_from=learned_from)]
    assert weights["a"] < weights["b"]


@pytest.mark.parametrize("mixing", [PHASES, INFLUENCE, ODM], ids=lambda mixing: mixing["kind"])
@pytest.mark.parametrize("die_at", [3, 4, 8])
def test_a_killed_and_resumed_run_mixes_and_learns_the_same_to_the_bit(
    corpus: PackedCorpus, tmp_path: Path, mixing: dict[str, Any], die_at: int
) -> None:
    settings = with_mixing(mixing)
    whole = Attempt(corpus, tmp_path / "whole", settings)
    whole.run()
    killed = Attempt(corpus, tmp_path / "killed", settings, die_at)
    with pytest.raises(Killed):
        killed.run()
    resumed = Attempt(corpus, tmp_path / "killed", settings)
    assert resumed.first_step > 0 or die_at == 3
    resumed.run()
    assert {**killed.figures(), **resumed.figures()} == whole.figures()
    assert resumed.feed.stream.cursor == whole.feed.stream.cursor
    weights = [mixture.weights for mixture in whole.feed.stream.history]
    assert len(weights) == (2 if mixing["kind"] == "phases" else 5) and weights[0] != weights[-1]
    assert whole.rows[-1]["weight_small"] == round(weights[-1]["small"], 4)


def test_phases_begin_at_their_step(corpus: PackedCorpus, tmp_path: Path) -> None:
    attempt = Attempt(corpus, tmp_path, with_mixing(PHASES))
    attempt.run()
    assert [(mixture.sample_index, mixture.weights) for mixture in attempt.feed.stream.history] == [
        (0, {"large": 1, "small": 0}),
        (4 * 8, {"large": 0.25, "small": 0.75}),
    ]
    served = {name: position.tokens // (STEP // 8) for name, position in attempt.feed.stream.cursor.sources.items()}
    assert served == {"large": 32 + 12, "small": 36}


class Recorder:
    """A mixer that notes what had been consumed when it acted."""

    def __init__(self) -> None:
        self.consumed: list[int] = []
        self.seen: list[tuple[int, list[int]]] = []

    def acts_before(self, step: int) -> bool:
        return step % 3 == 0

    def act(self, step: int, stream: MixedStream) -> None:
        self.seen.append((step, list(self.consumed)))
        stream.set_weights({"large": 1 + step, "small": 1})


@pytest.mark.parametrize("in_flight", [1, 2, 5, 100])
def test_a_mixer_acts_when_all_that_was_drawn_is_trained_on(corpus: PackedCorpus, in_flight: int) -> None:
    recorder = Recorder()
    feed = Feed(MixedStream(corpus, seed=0), StepPlan(8, 4, 8, 1, in_flight), None, 0, 1, recorder)
    for micro in feed:
        recorder.consumed.append(micro.step)
    assert recorder.seen == [(step, [done for done in range(1, step) for _ in range(2)]) for step in (3, 6)]
    assert recorder.consumed == [step for step in range(1, 8) for _ in range(2)]
    assert [mixture.sample_index for mixture in feed.stream.history] == [0, 16, 40]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing": PHASES, "weights": {"large": 1, "small": 1}}, "remove `weights`"),
        ({"mixing": {**PHASES, "phases": [FIRST]}}, "the last one at 1"),
        ({"mixing": {**PHASES, "phases": [{**FIRST, "until": 0.01}, LAST]}}, "none of the stage's 10 steps"),
        ({"mixing": {**ODM, "every_steps": 10}}, "every_steps 10 is not reached"),
        ({"mixing": {**INFLUENCE, "probe_rows": 5}, "train": {"num_workers": 2}}, "mixing.probe_rows: 5 rows do not divide over"),
        ({"mixing": {**ODM, "rows": 3}, "train": {"num_workers": 2}}, "mixing.rows: 3 rows do not divide over train.num_workers 2"),
        ({"mixing": {"kind": "influence"}}, "mixing.influence.probe: Field required"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_mixing(**changes)


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        (
            {**PHASES, "phases": [FIRST, {"until": 1, "weights": {"large": 1, "tiny": 1}}]},
            "weights must name each source",
        ),
        ({**INFLUENCE, "probe": ["tiny"]}, "has no source 'tiny'; it has: large, small"),
        ({**INFLUENCE, "probe_rows": 1000}, "small has .* heldout rows"),
    ],
)
def test_sources_are_checked_before_the_first_step(corpus: PackedCorpus, tmp_path: Path, mixing: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attempt(corpus, tmp_path, with_mixing(mixing))
