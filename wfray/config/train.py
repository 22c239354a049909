"""Configuration of the training stages 1.9, 2 and 3: one tree; a stage is a weighted list of objectives and a schedule.

Budgets are in tokens (positions of packed rows, padding included), never in samples or steps.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config, StageConfig


class Ramp(Config):
    """A value that moves from `start` to `end` over the stage; equal ends are a constant."""

    start: float
    end: float
    shape: Literal["linear", "cosine"] = "cosine"


Weight = Annotated[NonNegativeFloat | Ramp, Field(union_mode="left_to_right")]


class CrossEntropy(Config):
    """Next-token cross-entropy in nats per token."""

    kind: Literal["cross_entropy"]
    weight: Weight = 1.0


class LogitsKL(Config):
    """KL(teacher || student) over the whole vocabulary, from the teacher's last hidden states and its LM head."""

    kind: Literal["logits_kl"]
    weight: Weight = 1.0
    temperature: PositiveFloat = 1.0
    """BitDistill: 5 for task data; for general text 1 to 2 does better (arXiv 2410.16215)."""
    tau_squared: bool = True
    """Multiply by temperature squared (Hinton); the paper's formula does not, its code does."""


class Alignment(Config):
    """Stage 1.9: squared distance of the unit hidden states of every layer (OneBit, arXiv 2402.11295)."""

    kind: Literal["alignment"]
    weight: Weight = Ramp(start=0.5, end=0.0)
    layers: Literal["progressive", "uniform"] = "progressive"
    """Weight of layer l: l+1 normalised, or equal."""


class AttentionRelations(Config):
    """KL between the relations softmax(A A^T) of teacher and student for A = Q, K, V of one layer (BitDistill eq. 12)."""

    kind: Literal["attention_relations"]
    weight: Weight = 1.0
    layer: NonNegativeInt
    """Index of the layer; later ones do better (22 of 28)."""
    split_heads: PositiveInt | None = 32
    """Algorithm 1, the authors' code: cosine relations over this many slices. None: eq. 12, one relation a head."""


Objective = Annotated[CrossEntropy | LogitsKL | Alignment | AttentionRelations, Field(discriminator="kind")]


class Quantization(Config):
    """How far the weights and activations are quantized: lambda goes from 0 to 1."""

    schedule: Literal["constant", "linear", "cosine", "exponential", "sigmoid"] = "constant"
    """`constant`: lambda is 1 from the first step."""
    warmup_tokens: NonNegativeInt = 0
    """Tokens until lambda is 1."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if (self.schedule == "constant") != (self.warmup_tokens == 0):
            raise ValueError("warmup_tokens belongs to every schedule but constant: give both or neither")
        return self


class AdamW(Config):
    """AdamW on float32 master weights."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat
    """The peak."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """On matrices only; norms and biases never decay."""


class LearningRateSchedule(Config):
    """Linear warm-up, then the shape, down to `final_fraction` of the peak."""

    shape: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_fraction: float = Field(0.02, ge=0, lt=1)
    """Part of the stage's steps."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """`wsd`: the last part of the steps, in which the rate falls linearly."""
    final_fraction: float = Field(0.1, ge=0, le=1)


class TeacherUse(Config):
    """The teacher application that this stage asks for signals."""

    application: str = "teacher"
    in_flight: PositiveInt = 2
    """Batches asked for ahead of the student, per worker."""
    timeout_seconds: PositiveFloat = 120.0
    """How long to wait for the application or for one answer before the job stops."""


class Training(Config):
    """Budgets and the numerics of the loop."""

    tokens: PositiveInt
    """The stage's budget."""
    batch_tokens: PositiveInt
    """Tokens of one optimizer step, over all workers; a multiple of micro_rows x sequence length x workers."""
    micro_rows: PositiveInt = 4
    """Packed rows of one forward pass on one worker: lower it when memory runs out."""
    seed: int = 0
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the forward and backward products; master weights and optimizer states are float32."""
    gradient_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    gradient_checkpointing: bool = False
    checkpoint_every_tokens: PositiveInt
    """Distance of checkpoints; a killed job redoes at most this."""
    optimizer: AdamW
    schedule: LearningRateSchedule = Field(default_factory=lambda: LearningRateSchedule.model_validate({}))
    num_workers: PositiveInt = 1
    threads: PositiveInt | None = None
    """CPU threads of one worker; None leaves it to torch. Losses repeat to the bit for equal numbers only."""
    max_failures: NonNegativeInt = 2
    """Crashed workers that are replaced before the job gives up."""


class TrainConfig(StageConfig):
    """`jobs.align`, `jobs.pretrain`, `jobs.distill`: student + corpus (+ teacher) -> student."""

    student: str
    """Stage or directory of the student to go on from."""
    corpus: str = "pack"
    """Stage or directory of the packed corpus."""
    weights: dict[str, NonNegativeFloat] | None = None
    """Share of the tokens of each source; None: the weights of the corpus."""
    teacher: TeacherUse | None = None
    quantization: Quantization = Quantization()
    objectives: list[Objective] = Field(min_length=1)
    train: Training

    @model_validator(mode="after")
    def check(self) -> Self:
        kinds = [objective.kind for objective in self.objectives]
        if repeated := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"objectives name {', '.join(repeated)} more than once")
        needs_teacher = sorted(set(kinds) - {"cross_entropy"})
        if needs_teacher and self.teacher is None:
            raise ValueError(f"objectives {', '.join(needs_teacher)} need a teacher: add `teacher: {{application: teacher}}`")
        if self.teacher is not None and not needs_teacher:
            raise ValueError("a teacher is named but no objective uses it: remove `teacher` or add an objective")
        if self.train.tokens < self.train.batch_tokens:
            raise ValueError(f"train.tokens {self.train.tokens} is less than one step (train.batch_tokens {self.train.batch_tokens})")
        if self.quantization.warmup_tokens > self.train.tokens:
            raise ValueError(
                f"quantization.warmup_tokens {self.quantization.warmup_tokens} exceeds train.tokens {self.train.tokens}: "
                "lambda would never reach 1 and the student would not be ternary"
            )
        return self

    @property
    def parents(self) -> dict[str, str]:
        """The student to go on from, and the corpus."""
        return {"student": self.student, "corpus": self.corpus}

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the budget, the last one whole."""
        return self.train.tokens // self.train.batch_tokens
