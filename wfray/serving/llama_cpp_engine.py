"""The llama.cpp engine: a GGUF file, continuous batching, common beginnings computed once.

Every step is one pass over one batch: the next token of each answer under way, and as many tokens of prompts as still fit. An answer that
ends frees its slot at once for the next request in the queue. A slot keeps what it has computed: a request takes the free slot that
shares the longest beginning with it, or a copy of a slot at work that shares much more, and only the rest is computed. Slots at work are
kept side by side, since llama.cpp computes only those together (see `LlamaContext`).

Why the batch interface of llama-cpp-python: MIT as llama.cpp itself, built by the one package that parity and evaluation need
anyway, with log-probabilities of prompts, and no second server to configure. llama.cpp's own server on PyPI is wrapped under the AGPL,
compiles five minutes longer, and answers neither prompt log-probabilities nor lists of prompts as OpenAI does.

What it cannot do: tool calls, grammars, images. The last bits of logits depend on what shares a pass, so that of two almost equally likely
tokens another one may be taken under load.
"""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from wfray.serving.answer import Answer, check_vocabulary
from wfray.serving.engine import Chat, Piece, Request, join
from wfray.serving.llama_context import LlamaContext
from wfray.serving.templates import refusals

COPY_GAIN = 64
"""Tokens that a copied slot must save beyond what a free one has, to be worth its copy."""
SHARED_TOKENS = 16
"""Shared beginnings are compared in steps of so many tokens: fewer are computed faster than a slot apart from the others costs."""


@dataclass
class Slot:
    """A sequence of the cache, with the tokens that are in it."""

    index: int
    held: list[int] = field(default_factory=list)

    def shares(self, prompt: list[int]) -> int:
        """Tokens at the beginning of a prompt that are in the cache."""
        length = min(len(self.held), len(prompt))
        return next((place for place in range(length) if self.held[place] != prompt[place]), length)


@dataclass
class Job:
    """An answer in the making, and its slot."""

    number: int
    answer: Answer
    slot: Slot

    @property
    def sequence(self) -> list[int]:
        """Prompt and answer so far."""
        return self.answer.prompt + self.answer.tokens

    @property
    def num_pending(self) -> int:
        """Tokens of the sequence that are not computed yet; 1 while decoding."""
        return len(self.answer.prompt) + len(self.answer.tokens) - len(self.slot.held)


class LlamaCppEngine:
    """See the module docstring; implements `Engine`."""

    def __init__(self, file: Path | str, context: int, slots: int, threads: int) -> None:
        """Load `file`; see `LlamaContext`, whose `ValueError` it raises."""
        self.llama = LlamaContext(Path(file), context, slots, threads)
        self.context, self.slots = context, slots
        self.cache = [Slot(index) for index in range(slots)]
        self.jobs: dict[int, Job] = {}
        self.waiting: deque[tuple[int, Answer]] = deque()
        self.longest_token = max(len(data.decode(errors="replace")) for data in self.llama.token_bytes)
        template = self.llama.model.metadata().get("tokenizer.chat_template")
        self.formatter = None if template is None else self.chat_formatter(template)

    def chat_formatter(self, template: str) -> Jinja2ChatFormatter:
        """The renderer of the file's own chat template."""
        model = self.llama.model
        bos, eos = (self.llama.token_bytes[token].decode() if token >= 0 else "" for token in (model.token_bos(), model.token_eos()))
        return Jinja2ChatFormatter(template=template, bos_token=bos, eos_token=eos)

    @property
    def busy(self) -> bool:
        """See `Engine.busy`."""
        return bool(self.waiting or self.jobs)

    def add(self, number: int, request: Request) -> None:
        """See `Engine.add`."""
        prompt = self.tokens_of(request.prompt)
        self.waiting.append((number, Answer(request, prompt, self.context, self.llama.token_bytes.__getitem__)))

    def drop(self, number: int) -> None:
        """See `Engine.drop`."""
        self.waiting = deque(item for item in self.waiting if item[0] != number)
        self.jobs.pop(number, None)

    def tokens_of(self, prompt: str | list[int] | Chat) -> list[int]:
        """A prompt as token ids; an empty one is the beginning-of-text token."""
        if isinstance(prompt, str):
            self.check_length(prompt)
            return self.llama.tokenize(prompt, add_special=True) or [self.llama.model.token_bos()]
        if prompt and isinstance(prompt[0], dict):
            return self.llama.tokenize(self.render(prompt), add_special=False)
        tokens: list[int] = prompt  # type: ignore[assignment]
        check_vocabulary(tokens, self.llama.vocab_size)
        return tokens or [self.llama.model.token_bos()]

    def render(self, messages: Chat) -> str:
        """A conversation in the file's own template."""
        if self.formatter is None:
            raise ValueError("this model has no chat template: use /v1/completions")
        with refusals():
            text = self.formatter(messages=messages).prompt  # type: ignore[arg-type]
        self.check_length(text)
        return text

    def check_length(self, text: str) -> None:
        """Refuse, before it is tokenized, what cannot fit however long its tokens are."""
        if len(text) > self.context * self.longest_token:
            raise ValueError(f"the prompt has {len(text)} characters, but the context is {self.context} tokens, answer included")

    def step(self) -> list[tuple[int, Piece]]:
        """See `Engine.step`."""
        pieces = self.admit()
        rows = self.fill()
        if rows:
            self.llama.compute()
        for job, computed in rows:
            if piece := self.advance(job, computed):
                pieces.append((job.number, piece))
                if piece.finish_reason:
                    del self.jobs[job.number]
        return pieces

    def admit(self) -> list[tuple[int, Piece]]:
        """Give free slots to those who wait; an answer that needs none is finished."""
        pieces = []
        while self.waiting and len(self.jobs) < self.slots:
            number, answer = self.waiting.popleft()
            if not answer.scores_prompt and (piece := answer.echo()):
                pieces.append((number, piece))
                if piece.finish_reason:
                    continue
            self.jobs[number] = Job(number, answer, self.begin(answer))
        return pieces

    def begin(self, answer: Answer) -> Slot:
        """A free slot with as much of the prompt as is computed already; at least one token is computed anew."""
        slot = self.best_slot(answer.prompt)
        shared, best = slot.shares(answer.prompt), max(self.cache, key=lambda other: other.shares(answer.prompt))
        if best.shares(answer.prompt) >= shared + COPY_GAIN and not answer.scores_prompt:
            self.llama.copy(best.index, slot.index)
            shared = best.shares(answer.prompt)
        kept = 0 if answer.scores_prompt else min(shared, len(answer.prompt) - 1)
        answer.cached = kept if self.llama.keep(slot.index, kept) else 0
        slot.held = answer.prompt[: answer.cached]
        return slot

    def best_slot(self, prompt: list[int]) -> Slot:
        """The free slot that shares most with a prompt; of those that share about as much one beside slots at work, else the emptiest."""
        taken = {job.slot.index for job in self.jobs.values()}

        def worth(slot: Slot) -> tuple[int, int, int]:
            neighbours = sum(slot.index + step in taken for step in (-1, 1))
            return slot.shares(prompt) // SHARED_TOKENS, neighbours, -len(slot.held)

        return max((slot for slot in self.cache if slot.index not in taken), key=worth)

    def fill(self) -> list[tuple[Job, range]]:
        """Put what every answer needs next into the batch, decoding first: the answers and their rows.

        In the order of slots, since llama.cpp computes streams together only where their numbers follow each other.
        """
        rows = []
        for job in sorted(self.jobs.values(), key=lambda job: (job.num_pending, job.slot.index)):
            first, sequence = len(job.slot.held), job.sequence
            pending = sequence[first : first + self.llama.room]
            if pending:
                complete = first + len(pending) == len(sequence)
                rows.append((job, self.llama.put(job.slot.index, pending, first, job.answer.scores_prompt, complete)))
                job.slot.held += pending
        return rows

    def advance(self, job: Job, rows: range) -> Piece | None:
        """Read the logits of an answer's rows: scores of its prompt, and its next token once the prompt is computed."""
        answer, held = job.answer, len(job.slot.held)
        if answer.scores_prompt and not answer.tokens:
            answer.read_prompt(held - len(rows), [self.llama.logits(row) for row in rows])
        if held < len(answer.prompt):
            return None
        echo = answer.echo() if answer.scores_prompt and not answer.tokens else None
        if echo is not None and echo.finish_reason:
            return echo
        return join(echo, answer.take(self.llama.logits(rows[-1]), self.llama.is_end))

    def close(self) -> None:
        """See `Engine.close`."""
        self.llama.close()
