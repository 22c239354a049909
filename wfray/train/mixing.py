"""Weights of the sources that change during a stage: by phases, or learned from the student at an interval.

A mixer is asked between two steps, when no row of the later one has been drawn yet: `Feed` never prefetches across such a moment.
What it does depends on the student's weights and the stream's cursor alone, so a run that was killed and resumed, at whatever
number of prefetched batches, makes the same changes at the same rows. The memory that a mixer needs (the moving averages of ODM)
stands in the cursor's history.
"""

import math
from collections.abc import Callable, Mapping

from wfray.config.mixing import Curriculum, InfluenceMixing, LearnedMixing, OnlineMixing
from wfray.data.stream import MixedStream, Mixture
from wfray.train.feed import Feed, MicroBatch

Figures = dict[str, float]
"""A number of each source."""


class PhaseMixer:
    """The phases of a curriculum."""

    def __init__(self, config: Curriculum, num_steps: int) -> None:
        self.weights = dict(zip(config.starts(num_steps), (phase.weights for phase in config.phases), strict=True))

    def acts_before(self, step: int) -> bool:
        """Whether a phase begins with `step`."""
        return step in self.weights

    def act(self, step: int, stream: MixedStream) -> None:
        """Begin the phase."""
        stream.set_weights(self.weights[step])


class LearningMixer:
    """Measures the sources every few steps and moves the weights."""

    def __init__(
        self,
        config: LearnedMixing,
        measure: Callable[[MixedStream, list[str]], Figures],
        learn: Callable[[list[Mixture], Figures], tuple[Figures, Figures]],
    ) -> None:
        """
        Args:
            config: the interval.
            measure: figures of the named sources, of rows that are next in the stream.
            learn: from the stream's history and the figures: new weights, and what they were learned from.
        """
        self.config, self.measure, self.learn = config, measure, learn

    def acts_before(self, step: int) -> bool:
        """Whether weights are learned before `step`."""
        return step > 0 and step % self.config.every_steps == 0

    def act(self, step: int, stream: MixedStream) -> None:
        """Measure, and mix by what follows."""
        mixed = [name for name, weight in stream.weights.items() if weight > 0]
        weights, learned_from = self.learn(stream.history, self.measure(stream, mixed))
        stream.set_weights({**dict.fromkeys(stream.weights, 0.0), **weights}, learned_from)


def follow_influence(config: InfluenceMixing, history: list[Mixture], scores: Figures) -> tuple[Figures, Figures]:
    """`(1 - rate) * old + rate * wanted`, where `wanted` are the positive scores, normalised and bounded.

    Where no source helps, the weights stay.
    """
    old = {name: history[-1].weights[name] for name in scores}
    positive = normalised({name: max(0.0, score) for name, score in scores.items()})
    if not positive:
        return old, scores
    wanted = normalised({name: min(max(share, config.smallest), config.largest) for name, share in positive.items()})
    return {name: (1 - config.rate) * old[name] + config.rate * wanted[name] for name in scores}, scores


def follow_bandit(config: OnlineMixing, history: list[Mixture], losses: Figures) -> tuple[Figures, Figures]:
    """EXP3 of K sources at its t-th measurement, with rewards r and their moving average R.

        R_i <- smoothing R_i + (1 - smoothing) r_i
        weight_i = (1 - K e_t) softmax(e_(t-1) R)_i + e_t,   e_t = min(1/K, sqrt(ln K / (K t))),  e_0 = 1/K

    The paper divides the reward of a drawn source by the probability to draw it, which makes the average over many draws the
    reward itself. Here every source is measured every time, so there is nothing to divide by.
    """
    learned = [mixture.learned_from for mixture in history if mixture.learned_from]
    before = learned[-1] if learned else dict.fromkeys(losses, 0.0)
    rewards = {name: config.smoothing * before[name] + (1 - config.smoothing) * loss for name, loss in losses.items()}
    step, number = len(learned) + 1, len(losses)
    exploration, sharpness = exploration_rate(step, number), exploration_rate(step - 1, number)
    largest = max(rewards.values())
    chances = normalised({name: math.exp(sharpness * (reward - largest)) for name, reward in rewards.items()})
    return {name: (1 - number * exploration) * chance + exploration for name, chance in chances.items()}, rewards


def exploration_rate(step: int, num_sources: int) -> float:
    """e_t of EXP3."""
    return min(1 / num_sources, math.sqrt(math.log(num_sources) / (num_sources * step))) if step else 1 / num_sources


def normalised(values: Mapping[str, float]) -> Figures:
    """Shares that sum to 1; empty where all values are 0."""
    total = math.fsum(values.values())
    return {name: value / total for name, value in values.items()} if total > 0 else {}


def mixture_figures(feed: Feed, micro: MicroBatch) -> Figures:
    """The weights that drew a step's rows, where they may change."""
    return {f"weight_{name}": round(weight, 4) for name, weight in micro.cursor.history[-1].weights.items()} if feed.mixer else {}
