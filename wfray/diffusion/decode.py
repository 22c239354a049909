"""Decoding a block at a time (Fast-dLLM v2, arXiv 2509.26328, section 3.3), many answers of unequal length at once.

    prefill the whole blocks of each prompt; then, of every answer that is not finished, in each pass
        block without masks:  run it once more, clean: its keys and values stay, its last state gives the next block's first token
        else:                 run it, take the tokens that are sure enough of its first sub-block with masks

Answers do not wait for each other: in one pass one finishes a block while others are in the middle of theirs. A prompt may end in
the middle of a block, a stop token may stand anywhere: positions after the first one are left alone, and the answer ends when all
before it are known. With `dual_cache` only the current sub-block and the position before it are run, between whole runs at its
beginning; the rest of the block keeps the keys and values of the last whole run, which is faster and an approximation.

A block size of 1 is autoregressive decoding with a key-value cache: every token is the first one of its block.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wfray.diffusion.acceptance import accepted, choose
from wfray.diffusion.answers import Answer, Counts, Decoding, Given
from wfray.diffusion.cache import Cache, CachedRun
from wfray.student.forward import lm_head_weight

PREFILL_TOKENS = 512
"""Of each prompt, most that are run at a time."""


class BlockDecoder:
    """Decodes with one model; answers come and go."""

    def __init__(
        self, model: PreTrainedModel, mask_id: int, stop_ids: frozenset[int], decoding: Decoding, num_rows: int, context: int
    ) -> None:
        """Make room.

        Args:
            model: attends over blocks.
            mask_id: the mask token.
            stop_ids: tokens that end an answer.
            decoding: how; an answer may have a length and a sampling of its own.
            num_rows: answers under way at once.
            context: tokens of the longest answer, its prompt included.
        """
        self.model, self.mask_id, self.stop_ids, self.decoding = model, mask_id, stop_ids, decoding
        self.capacity = -(-context // decoding.block_size) * decoding.block_size
        self.cache = Cache(num_rows, self.capacity, decoding.block_size)
        self.answers: dict[int, Answer] = {}
        self.counts = Counts()

    def add(self, row: int, prompt: Sequence[int], decoding: Decoding | None = None) -> None:
        """Begin an answer in a row of the cache that is free.

        Raises:
            ValueError: the prompt is empty or holds the mask token, or the context does not hold it with its answer.
        """
        decoding = decoding or self.decoding
        if not prompt:
            raise ValueError("a prompt is empty: block diffusion needs a token before the first that it writes")
        if self.mask_id in prompt:
            raise ValueError(f"a prompt holds the mask token {self.mask_id}, which stands for what is to be written")
        if len(prompt) + decoding.max_tokens > self.capacity:
            raise ValueError(f"a prompt of {len(prompt)} tokens and {decoding.max_tokens} of its answer exceed the context {self.capacity}")
        tokens = [*prompt, *[self.mask_id] * (self.capacity - len(prompt))]
        self.answers[row] = Answer(row, tokens, len(prompt), self.mask_id, self.stop_ids, decoding)

    def drop(self, row: int) -> None:
        """Forget an answer; its row is free."""
        self.answers.pop(row, None)

    @torch.inference_mode()
    def prefill(self, rows: Sequence[int]) -> list[Given]:
        """Run the whole blocks of new answers' prompts; a prompt of whole blocks gives the first token of its answer."""
        answers, size = [self.answers[row] for row in rows], self.decoding.block_size
        longest, step = max(answer.start for answer in answers), max(1, PREFILL_TOKENS // size) * size
        for first in range(0, longest, step):
            running = [answer for answer in answers if answer.start > first]
            stop = min(first + step, longest)
            hidden_RTC = self._run(running, [first] * len(running), stop - first)
            for answer, hidden_TC in zip(running, hidden_RTC, strict=True):
                if answer.start == answer.num_prompt and answer.start <= stop:
                    self._write_first(answer, hidden_TC[answer.start - 1 - first])
        return self._hand_out(answers)

    @torch.inference_mode()
    def step(self) -> list[Given]:
        """One pass over every answer under way: what has become certain. A finished answer leaves its row."""
        answers = list(self.answers.values())
        parts = [answer for answer in answers if answer.is_part_enough()]
        self.counts.runs += len(answers)
        self.counts.windows += len(parts)
        if wholes := [answer for answer in answers if answer not in parts]:
            self._run_and_take(wholes, [answer.start for answer in wholes], self.decoding.block_size)
        self._run_parts(parts)
        return self._hand_out(answers)

    def stream(self, prompts: Sequence[Sequence[int]]) -> Iterator[Given]:
        """Answers to as many prompts as there are rows, each one's tokens in order; the last of each says how it ended.

        Raises:
            ValueError: see `add`.
        """
        for row, prompt in enumerate(prompts):
            self.add(row, prompt)
        yield from self.prefill(range(len(prompts)))
        while self.answers:
            yield from self.step()

    def _run_parts(self, parts: list[Answer]) -> None:
        """Run sub-blocks, each with the position before it where that is of the same block."""
        size, firsts = self.decoding.sub_block_size, [answer.sub_block() for answer in parts]
        for before in (0, 1):
            chosen = [(answer, first - before) for answer, first in zip(parts, firsts, strict=True) if (first > answer.start) == before]
            if chosen:
                self._run_and_take([answer for answer, _ in chosen], [first for _, first in chosen], size + before)

    def _run_and_take(self, answers: list[Answer], firsts: list[int], length: int) -> None:
        hidden_RTC = self._run(answers, firsts, length)
        for answer, first, hidden_TC in zip(answers, firsts, hidden_RTC, strict=True):
            if wanted := answer.wanted():
                answer.fresh_sub_block = answer.sub_block()
                self._take(answer, wanted, hidden_TC[[position - 1 - first for position in wanted]])
            else:
                answer.start += self.decoding.block_size
                self._write_first(answer, hidden_TC[-1])

    def _run(self, answers: list[Answer], firsts: list[int], length: int) -> Tensor:
        """The last hidden states [R, length, C] of positions of answers."""
        device = self.model.device
        tokens = [answer.tokens[first : first + length] for answer, first in zip(answers, firsts, strict=True)]
        positions_RT = torch.tensor(firsts, device=device)[:, None] + torch.arange(length, device=device)
        output = self.model.base_model(
            input_ids=torch.tensor(tokens, device=device),
            position_ids=positions_RT,
            attending=CachedRun(self.cache, [answer.row for answer in answers], positions_RT),
            use_cache=False,
        )
        hidden_RTC = output.last_hidden_state
        assert isinstance(hidden_RTC, Tensor)
        return hidden_RTC

    def _take(self, answer: Answer, wanted: list[int], hidden_NC: Tensor) -> None:
        """Write the tokens that are sure enough."""
        token_N, confidence_N = choose(self._logits(hidden_NC), answer.decoding.sampling, answer.generator)
        for index in accepted(confidence_N, answer.decoding.threshold).tolist():
            answer.tokens[wanted[index]] = int(token_N[index])

    def _write_first(self, answer: Answer, hidden_C: Tensor) -> None:
        """Write the first token of a block from the state before it."""
        if answer.start < answer.limit:
            token_N, _ = choose(self._logits(hidden_C[None]), answer.decoding.sampling, answer.generator)
            answer.tokens[answer.start] = int(token_N[0])

    def _logits(self, hidden_NC: Tensor) -> Tensor:
        """[N, V]; the mask token is never written."""
        head_VC = lm_head_weight(self.model)
        logits_NV = hidden_NC.to(head_VC.dtype) @ head_VC.T
        logits_NV[:, self.mask_id] = -torch.inf
        return logits_NV

    def _hand_out(self, answers: Sequence[Answer]) -> list[Given]:
        found = [given for answer in answers if (given := answer.hand_out())]
        self.counts.tokens += sum(len(given.tokens) for given in found)
        for given in found:
            if given.finished:
                self.drop(given.row)
        return found


def generate(
    model: PreTrainedModel, mask_id: int, stop_ids: frozenset[int], decoding: Decoding, prompts: Sequence[Sequence[int]]
) -> tuple[list[list[int]], Counts]:
    """Answers to prompts, without their stop tokens, and what they took; arguments as of `BlockDecoder`.

    Raises:
        ValueError: see `BlockDecoder.add`.
    """
    context = max(map(len, prompts)) + decoding.max_tokens
    decoder = BlockDecoder(model, mask_id, stop_ids, decoding, len(prompts), context)
    answers: list[list[int]] = [[] for _ in prompts]
    for given in decoder.stream(prompts):
        answers[given.row] += given.tokens
    return answers, decoder.counts
