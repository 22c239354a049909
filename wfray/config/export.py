"""Configuration of the export: a student becomes one GGUF file that stock llama.cpp runs, with a proof that it computes the same."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from wfray.config.base import Config, StageConfig

LinearType = Literal["Q4_0", "TQ2_0", "TQ1_0", "F16"]
EmbeddingType = Literal["F16", "Q8_0"]


class Parity(Config):
    """Held-out sequences through the training model and through the file in llama.cpp; a miss fails the export.

    The training model rounds activations to int8 with one scale a token, llama.cpp in blocks or not at all, so the file may
    also differ by `rounding_factor` times what the training model itself changes when its activations are left unrounded.
    """

    sequences: PositiveInt = 64
    """Taken from all sources in turn."""
    max_tokens: PositiveInt = 128
    """Longer sequences are cut here."""
    min_top1: float = Field(default=0.99, ge=0, le=1)
    """Share of positions where both models rank the same token first that is always enough."""
    max_mean_kl: NonNegativeFloat = 1e-3
    """Mean KL(training || file) that is always small enough, nats a token."""
    rounding_factor: NonNegativeFloat = 1.5
    """Otherwise: this many times the effect of rounded activations. 0 leaves the two bounds above alone."""


class Speed(Config):
    """Prefill and decoding speed of the file, and of the full-precision original as an F16 file, in llama.cpp."""

    prompt_tokens: PositiveInt = 256
    decode_tokens: PositiveInt = 64
    repeats: PositiveInt = 5
    """The median counts."""


class ExportConfig(StageConfig):
    """`jobs.export`: student -> model.gguf."""

    stage: str = "export"
    """This stage's directory in the run."""
    student: str
    """Stage or directory of the student."""
    corpus: str = "pack"
    """Stage or directory of the packed corpus; its held-out split is what parity is measured on."""
    original: str | None = "convert"
    """Stage or directory of the full-precision original, written as an F16 file for comparison; None: no comparison."""
    linear_type: LinearType = "Q4_0"
    """Storage of the ternary matrices, exact in every type. TQ2_0 and TQ1_0 pad the hidden axis to a multiple of 256."""
    embedding_type: EmbeddingType = "F16"
    """Storage of the embedding, which is the head too. Q8_0 halves its bytes and rounds it."""
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
