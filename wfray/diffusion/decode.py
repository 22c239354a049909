"""Decoding a block at a time (Fast-dLLM v2, arXiv 2509.26328, section 3.3), many rows of unequal length at once.

    prefill the whole blocks of each prompt; then, of every row that is not finished, in each pass
        block without masks:  run it once more, clean: its keys and values stay, its last state gives the next block's first token
        else:                 run it, take the tokens that are sure enough of its first sub-block with masks

Rows do not wait for each other: in one pass one row finishes a block while others are in the middle of theirs. A prompt may end in
the middle of a block, a stop token may stand anywhere: positions after the first one are left alone, and the row ends when all
before it are known. With `dual_cache` only the current sub-block and the position before it are run, between whole runs at its
beginning; the rest of the block keeps the keys and values of the last whole run, which is faster and an approximation.

A block size of 1 is autoregressive decoding with a key-value cache: every token is the first one of its block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wfray.diffusion.acceptance import Sampling, accepted, choose
from wfray.diffusion.cache import Cache, CachedRun
from wfray.student.forward import lm_head_weight

PREFILL_TOKENS = 512
"""Of each row, most that are run at a time."""


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
    """Written, over all rows."""
    runs: int = 0
    """Forward passes, each counted for every row in it; prompts left out."""
    windows: int = 0
    """Those of them over a part of a block."""


@dataclass
class Row:
    """One answer in the making."""

    index: int
    tokens: list[int]
    """Prompt and answer; the mask token where nothing is known yet."""
    num_prompt: int
    limit: int
    """Positions that are written at most, prompt included."""
    generator: torch.Generator
    start: int = 0
    """Of the block in work; everything before it is finished."""
    fresh_sub_block: int = -1
    """The sub-block (its first position) that a whole run has been made for."""
    num_given: int = 0
    """Tokens of the answer that were handed out."""
    finished: bool = False
    stopped: bool = False
    """Whether a stop token ended it; else the limit did."""


@dataclass(frozen=True)
class Given:
    """Tokens that have become certain."""

    row: int
    tokens: list[int]
    finished: bool
    stopped: bool
    """Whether a stop token, which is not among the tokens, has ended the answer."""


@dataclass
class BlockDecoder:
    """Decodes with one model."""

    model: PreTrainedModel
    mask_id: int
    stop_ids: frozenset[int]
    decoding: Decoding
    counts: Counts = field(default_factory=Counts)

    @torch.inference_mode()
    def stream(self, prompts: Sequence[Sequence[int]]) -> Iterator[Given]:
        """Tokens of all answers, each row's in order, as they become certain; the last of each row says how it ended.

        Raises:
            ValueError: a prompt is empty or holds the mask token.
        """
        if not all(prompts):
            raise ValueError("a prompt is empty: block diffusion needs a token before the first that it writes")
        if any(self.mask_id in prompt for prompt in prompts):
            raise ValueError(f"a prompt holds the mask token {self.mask_id}, which stands for what is to be written")
        capacity = self._whole(max(map(len, prompts)) + self.decoding.max_tokens)
        rows = [self._row(index, list(prompt), capacity) for index, prompt in enumerate(prompts)]
        cache = Cache(len(rows), capacity, self.decoding.block_size)
        self._prefill(rows, cache)
        while active := [row for row in rows if not row.finished]:
            yield from self._hand_out(active)
            self._pass([row for row in active if not row.finished], cache)

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """All answers, without their stop tokens."""
        answers: list[list[int]] = [[] for _ in prompts]
        for given in self.stream(prompts):
            answers[given.row] += given.tokens
        return answers

    def _row(self, index: int, prompt: list[int], capacity: int) -> Row:
        masks = [self.mask_id] * (capacity - len(prompt))
        return Row(index, prompt + masks, len(prompt), len(prompt) + self.decoding.max_tokens, self.decoding.sampling.generator())

    def _whole(self, length: int) -> int:
        """Rounded up to whole blocks."""
        return -(-length // self.decoding.block_size) * self.decoding.block_size

    def _prefill(self, rows: list[Row], cache: Cache) -> None:
        """Run the whole blocks of every prompt; a prompt of whole blocks gives the first token of the answer."""
        size = self.decoding.block_size
        for row in rows:
            row.start = row.num_prompt // size * size
        step = max(1, PREFILL_TOKENS // size) * size
        for first in range(0, max(row.start for row in rows), step):
            running = [row for row in rows if row.start > first]
            stop = min(first + step, max(row.start for row in running))
            hidden_RTC = self._run(running, [first] * len(running), stop - first, cache)
            for row, hidden_TC in zip(running, hidden_RTC, strict=True):
                if row.start == row.num_prompt and first < row.start <= stop:
                    self._write_first(row, hidden_TC[row.start - 1 - first])

    def _pass(self, rows: list[Row], cache: Cache) -> None:
        """Run every row's block, or the part of it that is enough."""
        parts = [row for row in rows if self._is_part_enough(row)]
        wholes = [row for row in rows if row not in parts]
        self.counts.runs += len(rows)
        self.counts.windows += len(parts)
        if wholes:
            self._run_and_take(wholes, [row.start for row in wholes], self.decoding.block_size, cache)
        if parts:
            firsts = [max(row.start, self._sub_block(row) - 1) for row in parts]
            for is_first in (True, False):
                chosen = [(row, first) for row, first in zip(parts, firsts, strict=True) if (first == row.start) == is_first]
                if chosen:
                    length = self.decoding.sub_block_size + (not is_first)
                    self._run_and_take([row for row, _ in chosen], [first for _, first in chosen], length, cache)

    def _is_part_enough(self, row: Row) -> bool:
        return self.decoding.dual_cache and bool(self._wanted(row)) and row.fresh_sub_block == self._sub_block(row)

    def _run_and_take(self, rows: list[Row], firsts: list[int], length: int, cache: Cache) -> None:
        hidden_RTC = self._run(rows, firsts, length, cache)
        for row, first, hidden_TC in zip(rows, firsts, hidden_RTC, strict=True):
            if wanted := self._wanted(row):
                row.fresh_sub_block = self._sub_block(row)
                self._take(row, wanted, hidden_TC[[position - 1 - first for position in wanted]])
            else:
                row.start += self.decoding.block_size
                self._write_first(row, hidden_TC[-1])

    def _run(self, rows: list[Row], firsts: list[int], length: int, cache: Cache) -> Tensor:
        """The last hidden states [R, length, C] of positions of rows."""
        device = self.model.device
        tokens_RT = torch.tensor([row.tokens[first : first + length] for row, first in zip(rows, firsts, strict=True)], device=device)
        positions_RT = torch.tensor(firsts, device=device)[:, None] + torch.arange(length, device=device)
        attending = CachedRun(cache, [row.index for row in rows], positions_RT)
        output = self.model.base_model(input_ids=tokens_RT, position_ids=positions_RT, attending=attending, use_cache=False)
        hidden_RTC = output.last_hidden_state
        assert isinstance(hidden_RTC, Tensor)
        return hidden_RTC

    def _wanted(self, row: Row) -> list[int]:
        """The masked positions that may be written now: those of the first sub-block that has any."""
        end = self._end(row)
        for first in range(row.start, row.start + self.decoding.block_size, self.decoding.sub_block_size):
            positions = range(first, min(first + self.decoding.sub_block_size, end))
            if masked := [position for position in positions if row.tokens[position] == self.mask_id]:
                return masked
        return []

    def _sub_block(self, row: Row) -> int:
        """The first position of the sub-block in work."""
        first, size = self._wanted(row)[0], self.decoding.sub_block_size
        return first - first % size

    def _end(self, row: Row) -> int:
        """Where writing ends: at the first stop token that is known, or the limit."""
        answer = range(max(row.num_prompt, row.start), min(row.start + self.decoding.block_size, row.limit))
        return next((position for position in answer if row.tokens[position] in self.stop_ids), row.limit)

    def _take(self, row: Row, wanted: list[int], hidden_NC: Tensor) -> None:
        """Write the tokens that are sure enough."""
        token_N, confidence_N = choose(self._logits(hidden_NC), self.decoding.sampling, row.generator)
        for index in accepted(confidence_N, self.decoding.threshold).tolist():
            row.tokens[wanted[index]] = int(token_N[index])

    def _write_first(self, row: Row, hidden_C: Tensor) -> None:
        """Write the first token of a block from the state before it."""
        if row.start < row.limit:
            token_N, _ = choose(self._logits(hidden_C[None]), self.decoding.sampling, row.generator)
            row.tokens[row.start] = int(token_N[0])

    def _logits(self, hidden_NC: Tensor) -> Tensor:
        """[N, V]; the mask token is never written."""
        head_VC = lm_head_weight(self.model)
        logits_NV = hidden_NC.to(head_VC.dtype) @ head_VC.T
        logits_NV[:, self.mask_id] = -torch.inf
        return logits_NV

    def _hand_out(self, rows: list[Row]) -> Iterator[Given]:
        """What has become certain of these rows: everything up to the first mask."""
        for row in rows:
            end = self._end(row)
            first = row.num_prompt + row.num_given
            stop = next((position for position in range(first, end) if row.tokens[position] == self.mask_id), end)
            row.finished = stop == end
            row.stopped = row.finished and end < row.limit
            new = row.tokens[first:stop]
            row.num_given += len(new)
            self.counts.tokens += len(new)
            if new or row.finished:
                yield Given(row.index, new, row.finished, row.stopped)
