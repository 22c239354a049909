"""Configuration of block diffusion: an autoregressive student learns to write a block at a time (Fast-dLLM v2, arXiv 2509.26328)."""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from wfray.config.mixing import LearnedMixing
from wfray.config.objectives import LogitsKL
from wfray.config.optimizer import MuonClip
from wfray.config.train import TrainConfig


class DiffuseConfig(TrainConfig):
    """`jobs.diffuse`: student + corpus (+ teacher) -> block-diffusion student, by the same objectives on noised blocks.

    Budgets count packed tokens, as everywhere: a step runs up to three times as many through the model.
    """

    stage: str = "diffuse"
    block_size: PositiveInt = Field(32, ge=2)
    """Tokens that are written together. On a GPU it must divide 128."""
    sub_block_size: PositiveInt = 8
    """Tokens within a block that are written before the next ones, unless whoever decodes says otherwise."""
    mask_token: str = Field("<|mask|>", min_length=1)
    """Added to the vocabulary, where the student has no mask token yet."""

    @model_validator(mode="after")
    def check_diffusion(self) -> Self:
        if self.block_size % self.sub_block_size:
            raise ValueError(f"sub_block_size {self.sub_block_size} does not divide block_size {self.block_size}")
        for objective in self.objectives:
            if objective.kind == "alignment":
                raise ValueError("alignment compares states of the same tokens, and a noised block has others: remove it")
            if isinstance(objective, LogitsKL) and objective.signal == "hidden":
                raise ValueError("logits_kl of hidden states runs over the teacher's vocabulary, which has no mask token: set signal: topk")
        if isinstance(self.train.optimizer, MuonClip):
            raise ValueError("optimizer muon_clip looks at causal attention, which blocks have not: use muon or adamw")
        if isinstance(self.mixing, LearnedMixing):
            raise ValueError("mixing by influence or losses measures causal losses: give `weights`, or mixing by phases")
        if self.train.compile:
            raise ValueError("train.compile needs batches of one shape, and the number of noised blocks differs from batch to batch")
        return self
