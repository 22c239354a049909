"""Configuration of the training stages 1.9, 2 and 3: one tree; a stage is a weighted list of objectives and a schedule.

Budgets are in tokens (positions of packed rows, padding included), never in samples or steps.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config, Location, Precision, StageConfig
from wfray.config.mixing import Curriculum, InfluenceMixing, LearnedMixing, Mixing
from wfray.config.objectives import Objective
from wfray.config.optimizer import Clipping, EarlyStopping, FixedClipping, LearningRateSchedule, Optimizer, WeightAverage, ZClip


class Quantization(Config):
    """How far the weights and activations are quantized: lambda goes from 0 to 1."""

    schedule: Literal["constant", "linear", "cosine", "exponential", "sigmoid", "none"] = "constant"
    """`constant`: lambda is 1 from the first step. `none`: it is 0 throughout, so the model is trained in full precision, as a teacher
    is on its task; without SubLN (`subln.placement: none`) what is saved is an ordinary checkpoint besides."""
    warmup_tokens: NonNegativeInt = 0
    """Tokens until lambda is 1."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if (self.schedule in ("constant", "none")) != (self.warmup_tokens == 0):
            raise ValueError("warmup_tokens belongs to every schedule but constant and none: give both or neither")
        return self


class TeacherUse(Config):
    """The teacher application that this stage asks for signals."""

    application: str = "teacher"
    made_by: str | None = None
    """Stage or directory that made the teacher's model, where a stage did: when that changes, this stage is done anew."""
    in_flight: Annotated[PositiveInt, Location()] = 2
    """Batches asked for ahead of the student, per worker."""
    timeout_seconds: Annotated[PositiveFloat, Location()] = 120.0
    """How long to wait for the application or for one answer before the job stops."""


class Tracking(Config):
    """The same figures as metrics.jsonl in Weights & Biases."""

    project: str = Field(min_length=1)
    entity: str | None = None
    """The W&B user or team; None: the key's own."""
    mode: Literal["auto", "offline", "online"] = "auto"
    """`auto`: online where WANDB_API_KEY is set, else offline, to be sent later with `wandb sync`."""


Learned = Literal["all", "norms", "unquantized"]
"""Which parameters a stage changes; see `Training.learned`."""


class Training(Config):
    """Budgets and the numerics of the loop."""

    tokens: PositiveInt
    """The stage's budget."""
    batch_tokens: PositiveInt
    """Tokens of one optimizer step, over all workers; a multiple of micro_rows x sequence length x workers."""
    micro_rows: Annotated[PositiveInt, Location()] = 4
    """Packed rows of one forward pass on one worker: lower it when memory runs out, and a stage that was stopped goes on. Losses repeat
    to the bit for equal numbers only."""
    seed: int = 0
    precision: Precision = "auto"
    """Of the forward and backward products; master weights and optimizer states are float32."""
    gradient_checkpointing: Annotated[bool, Location()] = False
    """Keep the inputs of each layer only and compute the rest again in the backward pass: less memory, a third more work."""
    compile: bool = False
    """Compile the decoder layers: a ternary step takes two thirds of its time, after about half a minute once. CPUs need a C++ compiler
    and Python's headers."""
    checkpoint_every_tokens: PositiveInt = 10_485_760
    """Distance of checkpoints; a killed job redoes at most this. Training stands still while 12 bytes a weight are copied, and a token
    takes about 8 operations a weight, so the share of time lost depends on this number and not on the model: 0.3% of ten million tokens
    at 10 GB/s and 200 TFLOP/s."""
    learned: Learned = "all"
    """For a student of compensated rounding and few tokens codes had better stay as they are: what was rounded together stays together, and
    a step needs no gradients, optimizer states or memory for ternary matrices. `unquantized`: all but these, so embedding, LM head,
    norms and biases; `norms`: parameters of one dimension alone."""
    optimizer: Optimizer
    clipping: Clipping = FixedClipping()
    schedule: LearningRateSchedule = Field(default_factory=lambda: LearningRateSchedule.model_validate({}))
    average: WeightAverage | None = None
    """None: the weights themselves are saved."""
    early_stopping: EarlyStopping | None = None
    gradient_ratio_every_steps: PositiveInt | None = None
    """How often to log the gradient norm of each weighted term over that of cross-entropy; each time costs one forward and backward
    pass a term on one micro-batch."""
    num_workers: Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], Location()] = 1
    """Workers that share the weights and the batch; [least, most] starts with as many as the cluster has room for, and goes on with
    another number after a restart. Every possible number must divide the batch."""
    threads: PositiveInt | None = None
    """CPU threads of one worker; None leaves it to torch. Losses repeat to the bit for equal numbers only."""
    max_failures: Annotated[NonNegativeInt, Location()] = 2
    """How often crashed workers are replaced, from the newest checkpoint on, before the job gives up. Machines that the cloud takes
    back with notice do not count."""

    @model_validator(mode="before")
    @classmethod
    def default_kinds(cls, tree: Any) -> Any:
        """An optimizer that names no kind is AdamW, a clipping that names none is fixed."""
        if not isinstance(tree, dict):
            return tree
        defaults = {"optimizer": "adamw", "clipping": "fixed"}
        return tree | {name: {"kind": kind, **tree[name]} for name, kind in defaults.items() if isinstance(tree.get(name), dict)}

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens {self.tokens} is less than one step (batch_tokens {self.batch_tokens})")
        if self.checkpoint_every_tokens < self.batch_tokens:
            raise ValueError(f"checkpoint_every_tokens {self.checkpoint_every_tokens} is less than one step ({self.batch_tokens})")
        if self.compile and self.num_workers != 1:
            raise ValueError(
                "compile and several workers do not go together: compiled layers need whole weights, workers share codes only; "
                "set train.compile=false or train.num_workers=1"
            )
        if self.learned != "all" and self.optimizer.kind != "adamw":
            raise ValueError(
                f"optimizer {self.optimizer.kind} is for matrices of layers, and learned is {self.learned}: set train.optimizer.kind=adamw"
            )
        if not self.possible_workers:
            raise ValueError(f"num_workers {self.num_workers} must be a number or [least, most]")
        self.check_batch(self.batch_tokens, "tokens")
        if isinstance(self.clipping, ZClip) and self.clipping.warmup_steps >= self.num_steps:
            raise ValueError(f"clipping.warmup_steps {self.clipping.warmup_steps} leaves none of the stage's {self.num_steps} steps")
        if stop := self.early_stopping:
            if stop.every_tokens < self.batch_tokens:
                raise ValueError(f"early_stopping.every_tokens {stop.every_tokens} is less than one step ({self.batch_tokens})")
            if stop.every_tokens * (stop.patience + 1) >= self.tokens:
                raise ValueError(
                    f"early_stopping could never end the stage: {stop.patience} measurements after the first, {stop.every_tokens} "
                    f"tokens apart, are not over before its {self.tokens} tokens are; lower every_tokens or patience"
                )
        return self

    def check_batch(self, size: int, unit: str) -> None:
        """Raise `ValueError` when a step of `size` tokens or rows does not divide over some possible number of workers."""
        numbers = self.possible_workers
        if uneven := [number for number in numbers if size % (number * self.micro_rows)]:
            raise ValueError(
                f"a step of {size} {unit} does not divide into micro-batches of {self.micro_rows} rows on {uneven[0]} workers: "
                f"make train.batch_tokens a multiple of sequence length x train.micro_rows x {math.lcm(*numbers)}, "
                f"for train.num_workers of {' to '.join(str(number) for number in sorted({numbers[0], numbers[-1]}))}"
            )

    @property
    def possible_workers(self) -> range:
        """The numbers of workers that a job may find itself with."""
        least, most = (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers
        return range(least, most + 1)

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the budget, whole ones only."""
        return self.tokens // self.batch_tokens


class TrainConfig(StageConfig):
    """`jobs.align`, `jobs.pretrain`, `jobs.distill`: student + corpus (+ teacher) -> student."""

    student: str
    """Stage or directory of the student to go on from."""
    corpus: str = "pack"
    """Stage or directory of the packed corpus."""
    weights: dict[str, NonNegativeFloat] | None = None
    """Share of the tokens of each source; None: the weights of the corpus."""
    mixing: Mixing | None = None
    """How the weights change during the stage; None: not at all."""
    teacher: TeacherUse | None = None
    quantization: Quantization = Quantization()
    objectives: list[Objective] = Field(min_length=1)
    train: Training
    tracking: Annotated[Tracking | None, Location()] = None
    """None: metrics.jsonl alone. It is no part of what the stage is."""

    @model_validator(mode="after")
    def check(self) -> Self:
        kinds = [objective.kind for objective in self.objectives]
        if repeated := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"objectives name {', '.join(repeated)} more than once")
        if {"logits_kl", "concrete_score"} <= set(kinds):
            raise ValueError("logits_kl and concrete_score are two ways to follow the teacher's logits: choose one")
        if "certainty" in kinds and "cross_entropy" not in kinds:
            raise ValueError("certainty sharpens what is right and teaches nothing: add {kind: cross_entropy} to objectives")
        needs_teacher = sorted(set(kinds) - {"cross_entropy", "certainty"})
        if needs_teacher and self.teacher is None:
            raise ValueError(f"objectives {', '.join(needs_teacher)} need a teacher: add `teacher: {{application: teacher}}`")
        if self.teacher is not None and not needs_teacher:
            raise ValueError("a teacher is named but no objective uses it: remove `teacher` or add an objective")
        if not any(objective.weight for objective in self.objectives):
            raise ValueError("every objective has weight 0, so there is nothing to learn: give one of them a weight")
        last_step_starts = (self.num_steps - 1) * self.train.batch_tokens
        if self.quantization.warmup_tokens > last_step_starts:
            raise ValueError(
                f"quantization.warmup_tokens {self.quantization.warmup_tokens} leaves none of train.tokens {self.train.tokens} at "
                "lambda 1: the student would not be ternary; lower it"
            )
        if self.train.gradient_ratio_every_steps and not ("cross_entropy" in kinds and len(kinds) > 1):
            raise ValueError("train.gradient_ratio_every_steps compares other objectives to cross_entropy: add them or set it to null")
        return self

    @model_validator(mode="after")
    def check_mixing(self) -> Self:
        if isinstance(self.mixing, Curriculum):
            if self.weights is not None:
                raise ValueError("mixing.phases give the weights of the whole stage: remove `weights`")
            starts = self.mixing.starts(self.num_steps)
            if len(set(starts)) < len(starts) or starts[-1] >= self.num_steps:
                raise ValueError(f"a phase of mixing.phases has none of the stage's {self.num_steps} steps: they start at steps {starts}")
        if isinstance(self.mixing, LearnedMixing):
            looked_at = {"rows": self.mixing.rows}
            if isinstance(self.mixing, InfluenceMixing):
                looked_at["probe_rows"] = self.mixing.probe_rows * len(self.mixing.probe)
            for name, rows in looked_at.items():
                if uneven := [number for number in self.train.possible_workers if rows % number]:
                    raise ValueError(f"mixing.{name}: {rows} rows do not divide over train.num_workers {uneven[0]}")
            if self.mixing.every_steps >= self.num_steps:
                raise ValueError(f"mixing.every_steps {self.mixing.every_steps} is not reached in the stage's {self.num_steps} steps")
        return self

    @property
    def first_weights(self) -> dict[str, float] | None:
        """The weights that the stage begins with; None: those of the corpus."""
        return self.mixing.phases[0].weights if isinstance(self.mixing, Curriculum) else self.weights

    @property
    def all_weights(self) -> dict[str, float] | None:
        """Of every source that the stage trains on at any time its largest weight; None: those of the corpus."""
        if not isinstance(self.mixing, Curriculum):
            return self.weights
        largest: dict[str, float] = {}
        for phase in self.mixing.phases:
            largest |= {name: max(weight, largest.get(name, 0.0)) for name, weight in phase.weights.items()}
        return largest

    @property
    def parents(self) -> dict[str, str]:
        """The student to go on from, the corpus, and what made the teacher."""
        made_by = self.teacher.made_by if self.teacher else None
        return {"student": self.student, "corpus": self.corpus, **({"teacher": made_by} if made_by else {})}

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the budget."""
        return self.train.num_steps

    def rows_of_step(self, sequence_length: int) -> int:
        """Rows of a step from the configuration's tokens.

        Raises:
            ValueError: the batch is not a whole number of rows, or does not divide over some possible number of workers.
        """
        tokens = self.train.batch_tokens
        if tokens % sequence_length:
            raise ValueError(f"train.batch_tokens {tokens} is not a multiple of the corpus's sequence length {sequence_length}")
        rows = tokens // sequence_length
        self.train.check_batch(rows, "rows")
        return rows
