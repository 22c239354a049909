"""How a student's weights move: optimizer, clipping, learning rate, average, and when to stop early."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config


class AdamWSettings(Config):
    """AdamW on float32 master weights."""

    learning_rate: PositiveFloat
    """The peak."""
    embedding_learning_rate: PositiveFloat | None = None
    """The peak for embedding and LM head; None: `learning_rate`. Where these and norms alone learn, norms want three times as much."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """On matrices only; norms and biases never decay."""


class AdamW(AdamWSettings):
    """AdamW for every weight."""

    kind: Literal["adamw"] = "adamw"


class MuonSettings(AdamWSettings):
    """Muon for the matrices of the decoder layers, AdamW for embeddings, LM head, norms and biases.

    An orthogonal update is scaled to the root mean square of an AdamW update, 0.2 sqrt(max(rows, columns)) (Moonlight,
    arXiv 2502.16982), so that one learning rate and one weight decay serve both.
    """

    momentum: float = Field(0.95, ge=0, lt=1)
    """Of Muon; Nesterov's."""
    newton_schulz_steps: int = Field(5, ge=1, le=20)


class Muon(MuonSettings):
    """Muon alone."""

    kind: Literal["muon"]


class MuonClip(MuonSettings):
    """Muon with QK-clip (Kimi K2, arXiv 2507.20534): attention logits that grew beyond `tau` shrink W_q and W_k after the step."""

    kind: Literal["muon_clip"]
    tau: PositiveFloat = 100.0
    """Largest attention logit, after division by sqrt(head_dim), that is left alone."""
    scope: Literal["layer", "head"] = "layer"
    """What shrinks: all heads of the layer by the factor of its worst head, which is exact for ternary weights, or each head by its
    own, as Kimi K2 does for full-precision weights."""


Optimizer = Annotated[AdamW | Muon | MuonClip, Field(discriminator="kind")]


class FixedClipping(Config):
    """Scale a gradient down to `max_norm` when its global norm is larger."""

    kind: Literal["fixed"] = "fixed"
    max_norm: PositiveFloat = 1.0


class ZClip(Config):
    """Scale a gradient down when its norm is an outlier among the recent ones (ZClip, arXiv 2504.02507)."""

    kind: Literal["zclip"] = "zclip"
    threshold: PositiveFloat = 3.0
    """z-score from which a norm is an outlier."""
    decay: float = Field(0.97, gt=0, lt=1)
    """Of the moving averages of the norm and its variance."""
    warmup_steps: int = Field(25, ge=2)
    """Steps whose norms start the averages; nothing is an outlier before."""
    max_norm: PositiveFloat | None = None
    """A bound on every norm besides, in the warm-up too."""


Clipping = Annotated[FixedClipping | ZClip, Field(discriminator="kind")]


class LearningRateSchedule(Config):
    """Linear warm-up, then the shape, down to `final_fraction` of the peak."""

    shape: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_fraction: float = Field(0.02, ge=0, lt=1)
    """Part of the stage's steps."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """`wsd`: the last part of the steps, in which the rate falls linearly."""
    final_fraction: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.shape == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} + decay_fraction {self.decay_fraction} exceed 1: "
                "the rate would fall before it has risen; lower one of them"
            )
        return self


class WeightAverage(Config):
    """An exponential moving average of the weights: the student that is saved, while training goes on with the weights themselves."""

    decay: float = Field(0.999, gt=0, lt=1)
    """A step; 1 / (1 - decay) steps is about how far it looks back."""


class StopOnHeldoutLoss(Config):
    """End the stage when the held-out cross-entropy of the weights that would be saved no longer falls."""

    kind: Literal["heldout"]
    every_tokens: PositiveInt
    """Distance of measurements."""
    rows_per_source: PositiveInt = 16
    """Held-out rows of each source that has a share in training."""
    patience: PositiveInt = 3
    """Measurements in a row without improvement that end the stage."""
    min_improvement: NonNegativeFloat = 0.0
    """Nats below the best measurement that count as an improvement."""


class StopOnTrainingLoss(Config):
    """End the stage when the training loss, averaged over the steps between two measurements, no longer falls."""

    kind: Literal["training"]
    every_tokens: PositiveInt
    patience: PositiveInt = 3
    min_improvement: NonNegativeFloat = 0.0


EarlyStopping = Annotated[StopOnHeldoutLoss | StopOnTrainingLoss, Field(discriminator="kind")]
