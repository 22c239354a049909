"""Answers in the making: what is known of each, what may be written next, and where it ends."""

from dataclasses import dataclass, field

import torch

from wfray.diffusion.acceptance import Sampling


@dataclass(frozen=True)
class Decoding:
    """How blocks are written."""

    block_size: int
    sub_block_size: int
    threshold: float = 0.9
    """Probability beyond which a token is taken at once; 1: one token a run."""
    max_tokens: int = 256
    """Of an answer."""
    dual_cache: bool = False
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        """Raises: ValueError: sub-blocks do not divide blocks, or a figure is out of its range."""
        if self.sub_block_size < 1 or self.block_size % self.sub_block_size:
            raise ValueError(f"sub_block_size {self.sub_block_size} does not divide block_size {self.block_size}")
        if not 0 <= self.threshold <= 1 or self.max_tokens < 1:
            raise ValueError(f"threshold {self.threshold} must be in 0..1 and max_tokens {self.max_tokens} at least 1")


@dataclass
class Counts:
    """What a decoding took; `runs` over `tokens` is the speed-up that hardware without limits would give."""

    tokens: int = 0
    """Written, over all answers."""
    runs: int = 0
    """Forward passes, each counted for every answer in it; prompts left out."""
    windows: int = 0
    """Those of them over a part of a block."""


@dataclass(frozen=True)
class Given:
    """Tokens that have become certain."""

    row: int
    tokens: list[int]
    finished: bool
    stopped: bool
    """Whether a stop token, which is not among the tokens, has ended the answer."""


@dataclass
class Answer:
    """One answer."""

    row: int
    """Of the cache."""
    tokens: list[int]
    """Prompt and answer; the mask token where nothing is known yet, to the end of the last block."""
    num_prompt: int
    mask_id: int
    stop_ids: frozenset[int]
    decoding: Decoding
    generator: torch.Generator = field(init=False)
    start: int = 0
    """Of the block in work; everything before it is finished."""
    fresh_sub_block: int = -1
    """The sub-block (its first position) that a whole run has been made for."""
    num_given: int = 0
    """Tokens of the answer that were handed out."""
    finished: bool = False

    def __post_init__(self) -> None:
        self.generator = self.decoding.sampling.generator()
        self.start = self.num_prompt // self.decoding.block_size * self.decoding.block_size

    @property
    def limit(self) -> int:
        """Positions that are written at most, prompt included."""
        return self.num_prompt + self.decoding.max_tokens

    @property
    def end(self) -> int:
        """Where writing ends: at the first stop token that is known, or the limit."""
        block = range(max(self.num_prompt, self.start), min(self.start + self.decoding.block_size, self.limit))
        return next((position for position in block if self.tokens[position] in self.stop_ids), self.limit)

    def wanted(self) -> list[int]:
        """The masked positions that may be written now: those of the first sub-block that has any."""
        end, size = self.end, self.decoding.sub_block_size
        for first in range(self.start, self.start + self.decoding.block_size, size):
            positions = range(first, min(first + size, end))
            if masked := [position for position in positions if self.tokens[position] == self.mask_id]:
                return masked
        return []

    def sub_block(self) -> int:
        """The first position of the sub-block in work."""
        first = self.wanted()[0]
        return first - first % self.decoding.sub_block_size

    def is_part_enough(self) -> bool:
        """Whether running a part of the block suffices."""
        return self.decoding.dual_cache and bool(self.wanted()) and self.fresh_sub_block == self.sub_block()

    def hand_out(self) -> Given | None:
        """What has become certain since the last time: everything up to the first mask."""
        end, first = self.end, self.num_prompt + self.num_given
        stop = next((position for position in range(first, end) if self.tokens[position] == self.mask_id), end)
        self.finished = stop == end
        new = self.tokens[first:stop]
        self.num_given += len(new)
        if not new and not self.finished:
            return None
        return Given(self.row, new, self.finished, self.finished and end < self.limit)
