"""The terms of a training loss: each by its kind, its weight over the stage, and what it needs of the teacher."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config


class Ramp(Config):
    """A value that moves from `start` to `end` over the stage; equal ends are a constant."""

    start: NonNegativeFloat
    end: NonNegativeFloat
    shape: Literal["linear", "cosine"] = "cosine"


Weight = Annotated[NonNegativeFloat | Ramp, Field(union_mode="left_to_right")]


class CrossEntropy(Config):
    """Next-token cross-entropy in nats per token."""

    kind: Literal["cross_entropy"]
    weight: Weight = 1.0


class LogitsKL(Config):
    """KL(teacher || student) of the next token's distribution."""

    kind: Literal["logits_kl"]
    weight: Weight = 1.0
    signal: Literal["hidden", "topk", "sampled"] = "hidden"
    """What the teacher sends: `hidden` states, exact over the whole vocabulary (the student's side holds the teacher's LM head);
    `topk`, the k largest and the mass of the rest; `sampled`, an unbiased sample of the distribution (arXiv 2503.16870)."""
    num_ids: PositiveInt | None = None
    """Ids a token of `topk` (64 by default) or `sampled` (16 by default): 4 bytes each up to a vocabulary of 65,536, 6 beyond."""
    temperature: PositiveFloat = 1.0
    """BitDistill: 5 for task data; for general text 1 to 2 does better (arXiv 2410.16215)."""
    tau_squared: bool = True
    """Multiply by temperature squared (Hinton); the paper's formula does not, its code does."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.signal == "hidden" and self.num_ids is not None:
            raise ValueError("num_ids belongs to the signals topk and sampled: hidden states carry the whole vocabulary")
        return self

    @property
    def ids_per_token(self) -> int | None:
        """`num_ids` or its default."""
        return self.num_ids or {"hidden": None, "topk": 64, "sampled": 16}[self.signal]


class ConcreteScore(Config):
    """Target concrete score (arXiv 2504.16431): the ratios of the teacher's likeliest tokens to each other, and of nothing else.

    KL of both distributions renormalised over the teacher's k likeliest tokens, times the temperature squared. For block diffusion it
    covers masked tokens only; for teacher and student alike the state at i - 1 speaks of token i.
    """

    kind: Literal["concrete_score"]
    weight: Weight = 1.0
    num_ids: PositiveInt = 100
    temperature: PositiveFloat = 5.0


class Certainty(Config):
    """The entropy of the student's distribution where its likeliest token is the target already (dParallel, arXiv 2509.26488).

    So that a block-diffusion student is sure of more of what it gets right, and writes more tokens a run. It says nothing of what is
    wrong, and goes beside cross-entropy.
    """

    kind: Literal["certainty"]
    weight: Weight = 2.0
    temperature: PositiveFloat = 0.5


class Alignment(Config):
    """Stage 1.9: distance between student and teacher of the hidden states of every layer (OneBit, arXiv 2402.11295)."""

    kind: Literal["alignment"]
    weight: Weight = Ramp(start=0.5, end=0.0)
    layers: Literal["progressive", "uniform", "exponential"] | list[NonNegativeFloat] = "progressive"
    """Weight of layer l of L, normalised to add up to 1: l + 1, equal, exp(2 l / L), or a list of one number a layer."""
    distance: Literal["normalized_mse", "mse", "cosine"] = "normalized_mse"
    """Of two hidden states: squared distance of the unit vectors; mean squared difference; 1 - cosine, half of the first."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if isinstance(self.layers, list) and not any(self.layers):
            raise ValueError("layers needs at least one weight above 0")
        return self


class AttentionRelations(Config):
    """KL between the relations softmax(A A^T) of teacher and student for A = Q, K, V of one layer (BitDistill eq. 12)."""

    kind: Literal["attention_relations"]
    weight: Weight = 1.0
    layer: NonNegativeInt
    """Index of the layer; later ones do better (22 of 28)."""
    split_heads: PositiveInt | None = 32
    """Algorithm 1, the authors' code: cosine relations over this many slices. None: eq. 12, one relation a head."""


Objective = Annotated[CrossEntropy | LogitsKL | ConcreteScore | Certainty | Alignment | AttentionRelations, Field(discriminator="kind")]
