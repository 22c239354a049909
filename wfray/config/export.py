"""Configuration of the export: a student becomes files that other engines run, each with a proof that it computes the same."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from wfray.config.base import Config, StageConfig

LinearType = Literal["Q4_0", "TQ2_0", "TQ1_0", "F16"]
EmbeddingType = Literal["F16", "Q8_0", "Q6_K", "Q5_0"]
Layout = Literal["x86", "arm"]
Form = Literal["packed", "unpacked", "latent"]


class GGUF(Config):
    """A GGUF file of llama.cpp's architecture `bitnet`, for Llama-shaped students."""

    kind: Literal["gguf"]
    path: str = Field("model.gguf", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf$")
    """The file's name in the stage's directory."""
    linear_type: LinearType = "Q4_0"
    """Storage of the ternary matrices, exact in every type. TQ2_0 and TQ1_0 pad the hidden axis to a multiple of 256."""
    embedding_type: EmbeddingType = "F16"
    """Storage of the embedding, which is the head too. Q8_0 rounds it to 53% of F16's bytes, Q5_0 to 34%, Q6_K to 41% and only in rows of a
    multiple of 256."""


class I2S(Config):
    """A GGUF file for bitnet.cpp, whose type ids stock llama.cpp gives to other types: never hand one to the other."""

    kind: Literal["i2_s"]
    path: str = Field("model-i2_s.gguf", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf$")
    """The file's name in the stage's directory."""
    layout: Layout = "x86"
    """Order of the codes in memory, which bitnet.cpp's binaries of one kind of processor expect."""
    embedding_type: EmbeddingType = "F16"
    """As for `gguf`."""


class HuggingFace(Config):
    """A directory that transformers loads: its own class `bitnet` for Llama-shaped students, for others with our code inside."""

    kind: Literal["huggingface"]
    path: str = Field("huggingface", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The directory's name in the stage's directory."""
    form: Form = "packed"
    """packed: four codes a byte; unpacked: ternary values as float32, which transformers' trainable layers read; latent: the student
    itself, to go on training with this project."""


Format = Annotated[GGUF | I2S | HuggingFace, Field(discriminator="kind")]


class Parity(Config):
    """Held-out sequences through the training model and through the file in its own engine; a miss fails the export.

    The bounds compare the file with the training model in the engine's own rounding of activations (see `wfray.export.parity`).
    """

    sequences: PositiveInt = 64
    """Taken from all sources in turn; a corpus that holds fewer is refused."""
    max_tokens: PositiveInt = 128
    """Longer sequences are cut here."""
    min_top1: float = Field(default=0.99, ge=0, le=1)
    """Share of positions where both models rank the same token first."""
    max_mean_kl: NonNegativeFloat = 1e-3
    """Mean KL(training || file), nats a token."""


class Speed(Config):
    """Prefill and decoding speed of each GGUF file, and of the full-precision original as an F16 file, in llama.cpp."""

    prompt_tokens: PositiveInt = 256
    decode_tokens: PositiveInt = 64
    repeats: PositiveInt = 5
    """The median counts."""


class ExportConfig(StageConfig):
    """`jobs.export`: student -> files in one or more formats."""

    stage: str = "export"
    """This stage's directory in the run."""
    student: str
    """Stage or directory of the student."""
    corpus: str = "pack"
    """Stage or directory of the packed corpus; its held-out split is what parity is measured on."""
    original: str | None = "convert"
    """Stage or directory of the full-precision original, written as an F16 file for comparison; None: no comparison."""
    formats: list[Format] = Field(default=[GGUF(kind="gguf", path="model.gguf")], min_length=1)
    """What is written. The first is the one that reports and servers take for the model."""
    threads: PositiveInt = 2
    """CPU threads of llama.cpp and torch."""
    num_cpus: NonNegativeFloat = 0.5
    """CPUs that the exporter reserves in Ray."""
    parity: Parity = Parity()
    speed: Speed = Speed()

    @property
    def parents(self) -> dict[str, str]:
        """The student, the corpus, and the original where there is one."""
        original = {} if self.original is None else {"original": self.original}
        return {"student": self.student, "corpus": self.corpus, **original}

    @model_validator(mode="after")
    def check(self) -> Self:
        paths = [wanted.path for wanted in self.formats]
        if repeated := sorted({path for path in paths if paths.count(path) > 1} | ({"original.gguf"} & set(paths))):
            raise ValueError(f"formats write {', '.join(repeated)} more than once; give each a `path` of its own")
        return self
