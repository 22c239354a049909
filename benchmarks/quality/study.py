"""What a study is: a model, a task, the arms to compare, and how they become the stages of one pipeline.

Arms, each on the same examples with the same tokens, steps and seed (the names of the paper's table in brackets):

| arm | student | terms |
|---|---|---|
| fp_sft | full precision, no SubLN (FP16-SFT); the teacher of the others | cross-entropy |
| bitnet_sft | ternary, no SubLN (BitNet-SFT) | cross-entropy |
| subln | + SubLN | cross-entropy |
| ct | + alignment and continued training on general text (stages 1.9 and 2), once for all seeds | cross-entropy |
| logits_kd | the same | + KL of the logits |
| attention_kd | the same | + attention relations |
| bitdistill | the same | both (BitDistill) |

Not in the paper:

| arm | student | terms |
|---|---|---|
| layers_kd | that of subln, without alignment before | + KL of the logits, and every layer drawn to the tuned teacher's |
| ct_gradual | that of ct, lambda from 0 to 1 over the first part of the stage | cross-entropy |
| teacher_start | made of the tuned teacher of its seed, with SubLN | + KL of the logits |
| teacher_start_gradual | the same, lambda from 0 to 1 over the first part | + KL of the logits |
| teacher_plain_gradual | the tuned teacher of its seed itself, without SubLN, lambda likewise | + KL of the logits |
| rounded | the tuned teacher of its seed, without SubLN, by compensated rounding on the task's text | none: it is not trained |
| rounded_norms | the same, its norms alone learn | + KL of the logits |
| rounded_unquantized | the same, its norms, embedding and LM head learn | + KL of the logits |

Every stage is one of the repository's jobs with a configuration file and overrides, so a study is a pipeline: what is done is
skipped, what was killed is resumed, and more seeds or arms are added by naming them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from wfray.config.base import Config, RunPath, read_yaml
from wfray.config.model import ModelSource
from wfray.config.pipeline import LocalClusterConfig, PipelineConfig, StageCall
from wfray.config.train import Learned

Task = Literal["sentiment", "boolq", "qnli", "qnli_articles", "hub"]


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    start: Literal["plain", "subln", "aligned", "tuned", "tuned_plain", "rounded"] = "aligned"
    """What the student is made of: the original without or with SubLN, that one aligned, or the tuned teacher (three ways)."""
    terms: tuple[str, ...] = ("cross_entropy",)
    quantized: bool = True
    gradual: bool = False
    """Whether lambda begins at 0."""

    trained: bool = True
    """Whether it is trained on the task, or evaluated as it starts."""
    learned: Learned = "all"
    """Which parameters the training changes."""

    @property
    def taught(self) -> bool:
        """Whether it asks the tuned teacher."""
        return len(self.terms) > 1

    def stage(self, name: str, seed: int) -> str:
        """The stage that holds the student of arm `name`: its training, or the conversion where there is none."""
        return f"{name}-{seed}" if self.trained else f"convert-{self.start}-{seed}"


ARMS: dict[str, Arm] = {
    "fp_sft": Arm(start="plain", quantized=False),
    "bitnet_sft": Arm(start="plain"),
    "subln": Arm(start="subln"),
    "ct": Arm(),
    "logits_kd": Arm(terms=("cross_entropy", "logits_kl")),
    "attention_kd": Arm(terms=("cross_entropy", "attention_relations")),
    "bitdistill": Arm(terms=("cross_entropy", "logits_kl", "attention_relations")),
    "layers_kd": Arm(start="subln", terms=("cross_entropy", "logits_kl", "alignment")),
    "ct_gradual": Arm(gradual=True),
    "teacher_start": Arm(start="tuned", terms=("cross_entropy", "logits_kl")),
    "teacher_start_gradual": Arm(start="tuned", terms=("cross_entropy", "logits_kl"), gradual=True),
    "teacher_plain_gradual": Arm(start="tuned_plain", terms=("cross_entropy", "logits_kl"), gradual=True),
    "rounded": Arm(start="rounded", trained=False),
    "rounded_norms": Arm(start="rounded", terms=("cross_entropy", "logits_kl"), learned="norms"),
    "rounded_unquantized": Arm(start="rounded", terms=("cross_entropy", "logits_kl"), learned="unquantized"),
}


def known_arm(name: str) -> str:
    """The name of an arm.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ARMS:
        raise ValueError(f"arm {name!r} is unknown: choose from {', '.join(ARMS)}")
    return name


ArmName = Annotated[str, AfterValidator(known_arm)]


class Study(Config):
    """A study; see the module docstring."""

    run: RunPath
    """Where its pipeline's stages, its data and its results are kept."""
    task: Task
    """All but `hub` come from packages and are written into the run; `hub` reads what the pack configuration names."""
    model: ModelSource
    num_layers: PositiveInt | None = None
    """Decoder layers that are kept, the first ones, so that a grid fits a small machine; None: all."""
    configs: dict[str, str]
    """The configuration file of each job: text, pack, convert, align, distill, teacher, evaluate."""
    overrides: dict[str, dict[str, Any]] = {}
    """Values by dotted key, job by job, that hold for all its stages."""
    arms: list[ArmName] = Field(list(ARMS), min_length=1)
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    full_precision_learning_rate: PositiveFloat = 1e-4
    """Of fp_sft; ternary students learn at that of the distill configuration."""
    norms_learning_rate: PositiveFloat = 3e-3
    """Of norms, where ternary codes stay as they are."""
    embedding_learning_rate: PositiveFloat = 1e-3
    """Of embedding and LM head there, where they learn."""
    rounding_tokens: PositiveInt = 32768
    """Of the task's text, on which such a start is calibrated."""
    gradual_share: PositiveFloat = Field(0.5, le=1.0)
    """Of a stage's tokens, until lambda is 1 in a gradual arm."""
    cluster: LocalClusterConfig | None = LocalClusterConfig()
    address: str | None = None
    """Dashboard of a running cluster, where `cluster` is null."""

    def starts_from(self, start: str) -> bool:
        """Whether an arm does."""
        return any(ARMS[name].start == start for name in self.arms)

    def pipeline(self, root: Path, run: Path) -> PipelineConfig:
        """The stages of all arms and seeds.

        Args:
            root: the repository.
            run: the absolute run directory, with `model/` and the task's text in it.
        """
        calls = [StageCall(job="pack", config=self.configs["text"], set={"stage": "text"})]
        calls.append(self.call("pack", "task", **self.task_text(run)))
        model = str(run / "model")
        calls += [self.convert("convert-plain", "none", model), self.convert("convert", "output", model)]
        if self.starts_from("aligned"):
            calls.append(self.teacher("original", model))
            calls.append(self.call("align", "align", student="convert", corpus="text"))
        for seed in self.seeds:
            calls += self.of_seed(root, run, seed)
        return PipelineConfig(run=str(run), cluster=self.cluster, address=self.address, stages=calls, max_minutes=600.0, max_memory_gb=16.0)

    def of_seed(self, root: Path, run: Path, seed: int) -> list[StageCall]:
        """The stages of one seed; fp_sft comes first, since it is the teacher of others."""
        tuned = str(run / f"fp_sft-{seed}" / "student")
        calls = [self.arm("fp_sft", seed, root), self.teacher(f"tuned-{seed}", tuned)]
        calls += [self.convert(f"convert-tuned-{seed}", "output", tuned)] if self.starts_from("tuned") else []
        calls += [self.rounded(f"convert-rounded-{seed}", tuned)] if self.starts_from("rounded") else []
        calls += [self.arm(name, seed, root) for name in self.arms if name != "fp_sft" and ARMS[name].trained]
        stages = {name: ARMS[name].stage(name, seed) for name in ("fp_sft", *self.arms)}
        subjects = [{"name": name, "kind": "student", "reference": stage} for name, stage in stages.items()]
        return [*calls, self.call("evaluate", f"evaluate-{seed}", corpus="task", subjects=subjects)]

    def arm(self, name: str, seed: int, root: Path) -> StageCall:
        """The training of one arm on the task."""
        arm = ARMS[name]
        tree = {**read_yaml(root / self.configs["distill"]), **self.overrides.get("distill", {})}
        objectives = [term for term in tree["objectives"] if term["kind"] in arm.terms]
        if missing := set(arm.terms) - {term["kind"] for term in objectives}:
            raise ValueError(f"arm {name} needs objectives of kind {', '.join(sorted(missing))}: {self.configs['distill']} has none")
        students = {"plain": "convert-plain", "subln": "convert", "aligned": "align"}
        students |= {"tuned": f"convert-tuned-{seed}", "tuned_plain": f"fp_sft-{seed}", "rounded": f"convert-rounded-{seed}"}
        values: dict[str, Any] = {"student": students[arm.start], "corpus": "task", "objectives": objectives, "train.seed": seed}
        values["teacher"] = {"application": f"tuned-{seed}", "made_by": f"fp_sft-{seed}"} if arm.taught else None
        if not arm.quantized:
            values |= {"quantization": {"schedule": "none"}, "train.optimizer.learning_rate": self.full_precision_learning_rate}
        if arm.learned != "all":
            values |= {"train.learned": arm.learned, "train.optimizer.learning_rate": self.norms_learning_rate}
        if arm.learned == "unquantized":
            values["train.optimizer.embedding_learning_rate"] = self.embedding_learning_rate
        if arm.gradual:
            tokens = tree.get("train.tokens", tree["train"]["tokens"])
            values["quantization"] = {"schedule": "linear", "warmup_tokens": round(tokens * self.gradual_share)}
        if not arm.taught:
            values["train.gradient_ratio_every_steps"] = None
        return self.call("distill", f"{name}-{seed}", **values)

    def convert(self, stage: str, placement: str, path: str) -> StageCall:
        """A student of a checkpoint directory, with or without SubLN."""
        model = {"kind": "directory", "path": path}
        return self.call("convert", stage, corpus="text", **{"model": model, "subln.placement": placement})

    def rounded(self, stage: str, path: str) -> StageCall:
        """A student of the tuned teacher by compensated rounding on the task's text, whose examples all begin alike."""
        values = {"model": {"kind": "directory", "path": path}, "subln.placement": "none"}
        rounding = {"kind": "compensated", "tokens": self.rounding_tokens, "piece_tokens": None}
        return self.call("convert", stage, corpus="task", **values, rounding=rounding)

    def teacher(self, application: str, path: str) -> StageCall:
        """An application that serves a checkpoint directory."""
        values = {**self.overrides.get("teacher", {}), "application": application, "model": {"kind": "directory", "path": path}}
        return StageCall(job="teacher", config=self.configs["teacher"], set=values)

    def call(self, job: Any, stage: str, **values: Any) -> StageCall:
        """One stage of the pipeline."""
        return StageCall(job=job, config=self.configs[job], set={"stage": stage, **self.overrides.get(job, {}), **values})

    def task_text(self, run: Path) -> dict[str, Any]:
        """Where the task's examples are, when the study writes them itself."""
        return {} if self.task == "hub" else {"sources.0.path": str(run / "train.jsonl")}
