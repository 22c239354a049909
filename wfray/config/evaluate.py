"""Configuration of the evaluation: how well each of several models predicts held-out text of every source."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from wfray.config.base import Config, StageConfig


class Subject(Config):
    """One model to be measured: a column of the table."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    kind: Literal["original", "student"]
    """`original`: the full-precision checkpoint that a convert stage keeps; `student`: the student that a stage made."""
    reference: str
    """Stage of this run, or a directory, that holds `original/` or `student/`."""


class Continuations(Config):
    """Held-out texts that some of the subjects write on, for people to read: greedy, so that they repeat."""

    subjects: list[str] = Field(min_length=1)
    """Names of the subjects that are asked."""
    per_source: PositiveInt = 1
    prompt_tokens: PositiveInt = 48
    new_tokens: PositiveInt = 48


class LabelledSource(Config):
    """A source of the corpus whose examples have labels (`chat: {kind: classification}`): accuracy is measured on its held-out rows."""

    source: str
    labels: list[str] = Field(min_length=2)
    """The words that stand for the labels, as the corpus has them."""


class EvaluateConfig(StageConfig):
    """`jobs.evaluate`: students and originals -> held-out perplexity per source."""

    stage: str = "evaluate"
    """This stage's directory in the run."""
    corpus: str = "pack"
    """Stage or directory of the packed corpus; only its held-out split is read."""
    subjects: list[Subject] = Field(min_length=1)
    """In the order of the table's columns: the reference first, the newest student last."""
    rows_per_source: PositiveInt = 8
    """Held-out rows of each source, always the same ones."""
    batch_rows: PositiveInt = 4
    """Rows of one forward pass."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the products, as in training; losses are summed in float64."""
    continuations: Continuations | None = None
    classification: list[LabelledSource] = []
    """Sources on which accuracy is measured besides, on all their held-out rows."""
    threads: PositiveInt | None = None
    """CPU threads; None leaves it to torch."""
    num_cpus: NonNegativeFloat = 0.5
    """CPUs that the evaluator reserves in Ray."""

    @model_validator(mode="after")
    def check(self) -> Self:
        names = [subject.name for subject in self.subjects]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"subjects share the name {', '.join(repeated)}; every column needs its own")
        if "corpus" in names:
            raise ValueError("a subject cannot be named corpus: that is the name of the other input")
        if self.continuations and (unknown := sorted(set(self.continuations.subjects) - set(names))):
            raise ValueError(f"continuations.subjects names {', '.join(unknown)}, but the subjects are {', '.join(names)}")
        return self

    @property
    def parents(self) -> dict[str, str]:
        """The corpus, and each subject under its name."""
        return {"corpus": self.corpus, **{subject.name: subject.reference for subject in self.subjects}}
