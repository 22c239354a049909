"""Configuration of the evaluation: how well models predict held-out text, answer labelled examples and do lm-eval's tasks."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from wfray.config.base import Config, Location, Precision, StageConfig
from wfray.config.harness import Harness
from wfray.config.train import Tracking


class Named(Config):
    """One model to be measured: a column of the table."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")


class Subject(Named):
    """A checkpoint that a stage made."""

    kind: Literal["original", "student"]
    """`original`: the full-precision checkpoint that a convert stage keeps; `student`: the student that a stage made."""
    reference: str
    """Stage of this run, or a directory, that holds `original/` or `student/`."""


class DiffusionSubject(Named):
    """A block-diffusion student that a stage made. For lm-eval only: its likelihoods are Monte Carlo estimates of a bound."""

    kind: Literal["diffusion"]
    reference: str
    """Stage of this run, or a directory, that holds `student/`."""
    samples: int = Field(32, ge=2)
    """Masks of each block of a continuation."""
    seed: NonNegativeInt = 0
    """Of the masks."""
    threshold: float | None = Field(None, ge=0, le=1)
    """Of acceptance where texts are generated; None: the student's own."""
    block_size: PositiveInt | None = None
    """None: the one that the student was trained for."""


class HubSubject(Named):
    """A checkpoint on the Hugging Face Hub, or the absolute path of a directory in its format. For lm-eval only."""

    kind: Literal["hub"]
    id: str
    revision: str = "main"


class GGUFSubject(Named):
    """A GGUF file in llama.cpp. For lm-eval only."""

    kind: Literal["gguf"]
    file: str
    """A path, which may begin with a stage of this run: `export/model.gguf`."""
    context: PositiveInt = 2048
    """Positions of its cache; longer requests lose their beginning."""


class EndpointSubject(Named):
    """A model behind the OpenAI API; the key is read from OPENAI_API_KEY. For lm-eval only."""

    kind: Literal["endpoint"]
    url: str = Field(pattern=r"^https?://.*/v\d+$")
    """Up to and with the version: `http://127.0.0.1:8000/wrinklefree/v1`."""
    model: str
    """Its name there."""
    tokenizer: str
    """Directory or Hub id of its tokenizer, which counts tokens and fills the context."""
    chat: bool = False
    """Ask `chat/completions`, which generates but gives no log-likelihoods; needs `harness.chat_template`."""
    concurrent: PositiveInt = 4
    """Requests in flight, for each actor."""


AnySubject = Annotated[Subject | DiffusionSubject | HubSubject | GGUFSubject | EndpointSubject, Field(discriminator="kind")]


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
    """`jobs.evaluate`: models -> held-out perplexity per source, accuracy on labels, scores of lm-eval's tasks."""

    stage: str = "evaluate"
    """This stage's directory in the run."""
    corpus: str | None = "pack"
    """Stage or directory of the packed corpus; only its held-out split is read. None: no perplexity, lm-eval alone."""
    subjects: list[AnySubject] = Field(min_length=1)
    """In the order of the table's columns: the reference first, the newest student last."""
    rows_per_source: PositiveInt = 8
    """Held-out rows of each source, always the same ones."""
    batch_rows: PositiveInt = 4
    """Rows of one forward pass."""
    precision: Precision = "auto"
    """Of the products, as in training; losses are summed in float64."""
    continuations: Continuations | None = None
    classification: list[LabelledSource] = []
    """Sources on which accuracy is measured besides, on all their held-out rows."""
    harness: Harness | None = None
    """lm-eval's tasks; None: none."""
    tracking: Annotated[Tracking | None, Location()] = None
    """Weights & Biases besides the files. It is no part of what the stage is."""
    threads: PositiveInt | None = None
    """CPU threads; None leaves it to torch."""
    num_cpus: NonNegativeFloat = 0.5
    """CPUs that the evaluator reserves in Ray."""

    @model_validator(mode="after")
    def check(self) -> Self:
        names = [subject.name for subject in self.subjects]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"subjects share the name {', '.join(repeated)}; every column needs its own")
        if reserved := sorted({"corpus", *self.task_folders} & set(names)):
            raise ValueError(f"a subject cannot be named {reserved[0]}: that is the name of another input")
        others = [subject.name for subject in self.subjects if not isinstance(subject, Subject)]
        if self.harness is None and (others or self.corpus is None):
            raise ValueError(f"{', '.join(others) or 'corpus: null'}: nothing to measure but lm-eval's tasks, so add `harness`")
        if self.corpus is None and (self.continuations or self.classification):
            raise ValueError("continuations and classification read a corpus: name one")
        pairs = self.harness.compare if self.harness else []
        if missing := sorted({name for pair in pairs for name in pair} - set(names)):
            raise ValueError(f"harness.compare names {', '.join(missing)}, but the subjects are {', '.join(names)}")
        if self.continuations and (unknown := sorted(set(self.continuations.subjects) - set(names))):
            raise ValueError(f"continuations.subjects names {', '.join(unknown)}, but the subjects are {', '.join(names)}")
        return self

    @property
    def parents(self) -> dict[str, str]:
        """The corpus, each subject that is a file or directory under its name, and the folders of task files."""
        corpus = {"corpus": self.corpus} if self.corpus else {}
        files = {
            s.name: s.file if isinstance(s, GGUFSubject) else s.reference
            for s in self.subjects
            if isinstance(s, Subject | DiffusionSubject | GGUFSubject)
        }
        local = {s.name: s.id for s in self.subjects if isinstance(s, HubSubject) and Path(s.id).is_absolute()}
        return {**corpus, **files, **local, **self.task_folders}

    @property
    def task_folders(self) -> dict[str, str]:
        """`harness.include` as inputs: what the scores are of changes with the files in it."""
        return {f"tasks {number}": folder for number, folder in enumerate(self.harness.include if self.harness else [])}

    @property
    def checkpoints(self) -> list[Subject]:
        """The subjects whose perplexity is measured: those that stages made, where there is a corpus."""
        return [subject for subject in self.subjects if isinstance(subject, Subject)] if self.corpus else []
