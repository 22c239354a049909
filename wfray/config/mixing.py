"""How the weights of the sources change during a training stage: by plan, or learned from the student itself."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config


class Phase(Config):
    """A part of the stage with a mixture of its own."""

    until: float = Field(gt=0, le=1)
    """Where the phase ends, as a part of the stage's steps."""
    weights: dict[str, NonNegativeFloat]
    """Share of the tokens of each source, relative to each other."""


class Curriculum(Config):
    """Phases one after the other; the last one ends with the stage."""

    kind: Literal["phases"]
    phases: list[Phase] = Field(min_length=1)

    @model_validator(mode="after")
    def check(self) -> Self:
        ends = [phase.until for phase in self.phases]
        if any(later <= earlier for earlier, later in zip(ends[:-1], ends[1:], strict=True)) or ends[-1] != 1:
            raise ValueError(f"phases must end one after the other, the last one at 1; they end at {ends}")
        return self

    def starts(self, num_steps: int) -> list[int]:
        """The first step of each phase."""
        return [0, *(round(phase.until * num_steps) for phase in self.phases[:-1])]


class LearnedMixing(Config):
    """Weights that are learned at an interval, from rows that each source would serve next. A source of weight 0 keeps it.

    One measurement costs as much as training on its rows; the interval bounds that cost, which each step's figures report.
    """

    every_steps: PositiveInt = 1000
    rows: PositiveInt = 8
    """Rows of each source that are looked at, over all workers."""


class InfluenceMixing(LearnedMixing):
    """A source gains by how much training on it lowers the loss on a probe set, to first order (DataInf, arXiv 2310.00902)."""

    kind: Literal["influence"]
    probe: list[str] = Field(min_length=1)
    """Sources whose held-out rows are the probe set; they may have weight 0."""
    probe_rows: PositiveInt = 16
    """Held-out rows of each, over all workers."""
    damping: PositiveFloat = 0.1
    """What is added to the squared norm of a source's gradient, in units of the sources' mean; keeps small gradients from ruling."""
    rate: float = Field(0.5, gt=0, le=1)
    """How far a measurement moves the weights."""
    smallest: float = Field(0.01, ge=0, lt=1)
    largest: float = Field(0.9, gt=0, le=1)
    """Bounds of a weight that a measurement asks for."""


class OnlineMixing(LearnedMixing):
    """Online data mixing, a bandit (EXP3) over the sources whose reward is the training loss (arXiv 2312.02406)."""

    kind: Literal["odm"]
    smoothing: float = Field(0.9, ge=0, lt=1)
    """How much of the average reward stays at each measurement."""


Mixing = Annotated[Curriculum | InfluenceMixing | OnlineMixing, Field(discriminator="kind")]
