"""Configuration of stage 1: a full-precision checkpoint becomes a student of ternary linear layers."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config, RunPath, StageConfig
from wfray.config.model import LocalModel, ModelSource


class Subln(Config):
    """The extra RMSNorms of BitDistill (arXiv 2510.13998, section 3.1)."""

    placement: Literal["output", "all", "none"] = "output"
    """`output`: before o_proj and down_proj, as in the paper; `all`: before all seven projections, as in its code."""
    init: Literal["calibrated", "ones"] = "calibrated"
    """Initial weight: the RMS of the projection's input in the original model, which keeps the function's scale, or 1."""
    eps: float = 1e-5


class Nearest(Config):
    """Latent weights are the original's: every weight is rounded by itself."""

    kind: Literal["nearest"] = "nearest"


class Compensated(Config):
    """Latent weights of compensated rounding on calibration text, layer by layer (see `wfray.student.compensate`)."""

    kind: Literal["compensated"]
    tokens: PositiveInt = 32768
    """Of the calibration text. All of it runs through every layer twice and through parts of it three times more; its hidden states are
    held twice, and every projection's outputs of one layer."""
    piece_tokens: PositiveInt | None = 64
    """Documents are cut into pieces of this many tokens, since a document's first token, on which attention rests, is otherwise too
    rare to be fitted; None leaves them whole, for text that always begins alike."""
    ridge: NonNegativeFloat = 0.05
    """Pull towards the original weights, in units of the mean square of an input feature; more where there is little text."""
    damping: PositiveFloat = 0.05
    """Of the rounding's spread of errors, in the same units."""


class ConvertConfig(StageConfig):
    """`jobs.convert`: model -> student."""

    stage: str = "convert"
    model: ModelSource
    models: RunPath = "runs/models"
    """Where full-precision models are kept, each under the hash of its source."""
    subln: Subln = Subln()
    rounding: Annotated[Nearest | Compensated, Field(discriminator="kind")] = Nearest()
    """How the student's first latent weights come from the original's."""
    corpus: str | None = "pack"
    """Stage or directory of the packed corpus for calibration; needed when `subln.init` is calibrated or `rounding` compensated."""
    calibration_tokens: PositiveInt = 4096
    threads: PositiveInt | None = None
    """CPU threads; None leaves it to torch, which takes one in a submitted job."""

    @property
    def calibrates(self) -> bool:
        """Whether there are norms whose weight comes from text."""
        return self.subln.init == "calibrated" and self.subln.placement != "none"

    @property
    def reads_corpus(self) -> bool:
        """Whether anything comes from text."""
        return self.calibrates or isinstance(self.rounding, Compensated)

    @model_validator(mode="after")
    def _has_text_to_calibrate(self) -> Self:
        if self.calibrates and self.corpus is None:
            raise ValueError("subln.init calibrated needs a calibration corpus; give `corpus`, or set subln.init=ones")
        if self.reads_corpus and self.corpus is None:
            raise ValueError("rounding compensated needs a calibration corpus; give `corpus`, or set rounding.kind=nearest")
        return self

    @property
    def parents(self) -> dict[str, str]:
        """A local model, and the corpus where it is needed."""
        local = {"model": self.model.path} if isinstance(self.model, LocalModel) else {}
        return local | ({"corpus": self.corpus} if self.reads_corpus and self.corpus else {})
