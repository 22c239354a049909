"""The block-diffusion engine: a student that writes a block at a time, on a GPU where there is one.

A step is one pass over the block in work of every answer under way; pieces are what has become certain, up to the first token that has
not, so that text comes in bursts of a block at most. Tokens are accepted at the threshold of the student's `dlm_config.json`.

What it cannot do: log-probabilities and echo (a token's probability depends on what else was known when it was taken), reuse of common
beginnings.
"""

from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wfray.diffusion.acceptance import Sampling
from wfray.diffusion.answers import Decoding, Given
from wfray.diffusion.decode import BlockDecoder
from wfray.diffusion.student import load_diffuser, prepare_for_inference
from wfray.quant.precision import dtype_of
from wfray.serving.answer_text import AnswerText
from wfray.serving.engine import Counts, FinishReason, Piece, Request
from wfray.serving.prompts import prompt_tokens
from wfray.serving.token_bytes import all_token_bytes


@dataclass
class Job:
    """An answer in the making."""

    number: int
    prompt: list[int]
    decoding: Decoding
    text: AnswerText
    num_tokens: int = 0
    unsent: int = 0
    """Tokens whose text is held back."""


class DiffusionEngine:
    """See the module docstring; implements `Engine`."""

    def __init__(self, file: Path | str, context: int, slots: int, threads: int) -> None:
        """Load the directory `file`, or `student` in it.

        Raises:
            ValueError: it holds no block-diffusion student, or one for a shorter context.
        """
        torch.set_num_threads(threads)
        directory = Path(file) / "student" if (Path(file) / "student").is_dir() else Path(file)
        diffuser = load_diffuser(directory)
        trained = diffuser.model.config.max_position_embeddings
        if context > trained:
            raise ValueError(f"context {context} of {str(file)!r} exceeds the {trained} positions that the model was trained for")
        prepare_for_inference(diffuser.model, dtype_of("auto"), "cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer, method = diffuser.tokenizer, diffuser.method
        self.context, self.slots = context, slots
        self.token_bytes = all_token_bytes(self.tokenizer, diffuser.model.config.vocab_size)
        decoding = Decoding(method.block_size, method.sub_block_size, method.threshold, dual_cache=True)
        self.decoder = BlockDecoder(diffuser.model, method.mask_token_id, diffuser.stop_ids, decoding, slots, context)
        self.jobs: dict[int, Job] = {}
        """By row of the decoder."""
        self.waiting: deque[Job] = deque()

    @property
    def busy(self) -> bool:
        """See `Engine.busy`."""
        return bool(self.jobs or self.waiting)

    def add(self, number: int, request: Request) -> None:
        """See `Engine.add`."""
        if request.num_logprobs is not None or request.echo:
            raise ValueError("a block-diffusion model gives no log-probabilities and no echo: ask without logprobs and echo")
        prompt, wanted = prompt_tokens(self.tokenizer, len(self.token_bytes), request.prompt), request.sampling
        room = self.context - len(prompt)
        if room < 1:
            raise ValueError(f"the prompt has {len(prompt)} tokens, but the context is {self.context} tokens, answer included")
        if self.decoder.mask_id in prompt:
            raise ValueError(f"the prompt holds the mask token {self.tokenizer.mask_token!r}, which stands for what is to be written")
        if wanted.max_tokens == 0:
            raise ValueError("max_tokens 0 asks for the prompt alone, of which a block-diffusion model gives nothing: ask for 1 or more")
        budget = room if wanted.max_tokens is None else min(room, wanted.max_tokens)
        sampling = Sampling(wanted.temperature, wanted.top_p, wanted.seed)
        decoding = replace(self.decoder.decoding, max_tokens=budget, sampling=sampling)
        self.waiting.append(Job(number, prompt, decoding, AnswerText(wanted.stop)))

    def drop(self, number: int) -> None:
        """See `Engine.drop`."""
        self.waiting = deque(job for job in self.waiting if job.number != number)
        for row in [row for row, job in self.jobs.items() if job.number == number]:
            self._end(row)

    def step(self) -> list[tuple[int, Piece]]:
        """See `Engine.step`: new answers' prompts, or a pass over all blocks in work."""
        new = []
        for row in [row for row in range(self.slots) if row not in self.jobs][: len(self.waiting)]:
            job = self.jobs[row] = self.waiting.popleft()
            self.decoder.add(row, job.prompt, job.decoding)
            new.append(row)
        pieces = []
        for part in self.decoder.prefill(new) if new else self.decoder.step():
            number = self.jobs[part.row].number
            if piece := self._piece(part):
                pieces.append((number, piece))
                if piece.finish_reason:
                    self._end(part.row)
        return pieces

    def _piece(self, given: Given) -> Piece | None:
        """What can be sent of new tokens."""
        job = self.jobs[given.row]
        job.num_tokens += len(given.tokens)
        job.unsent += len(given.tokens)
        text = job.text.add(b"".join(self.token_bytes[token] for token in given.tokens), final=given.finished)
        reason: FinishReason | None = "stop" if job.text.stopped or given.stopped else "length" if given.finished else None
        if not text and not reason:
            return None
        counts = Counts(prompt=len(job.prompt), completion=job.num_tokens) if reason else None
        unsent, job.unsent = job.unsent, 0
        return Piece(text=text, num_tokens=unsent, finish_reason=reason, counts=counts)

    def _end(self, row: int) -> None:
        self.decoder.drop(row)
        del self.jobs[row]

    def close(self) -> None:
        """See `Engine.close`."""
        del self.decoder
