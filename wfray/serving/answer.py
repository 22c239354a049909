"""One answer in the making, the same for every engine that chooses token by token: budget, stop texts, scores, seed.

The engine gives the logits of the position before each token; out come pieces that can be sent.
"""

import secrets
from collections.abc import Callable, Sequence

import numpy as np

from wfray.serving.answer_text import AnswerText
from wfray.serving.engine import Counts, FinishReason, Piece, Request, Scored, TokenScore
from wfray.serving.sampling import Logits, choose, likeliest, log_normalizer

TokenBytes = Callable[[int], bytes]


def check_vocabulary(tokens: Sequence[int], vocab_size: int) -> None:
    """Raises `ValueError` for a token id that the model does not have."""
    if wrong := [token for token in tokens if not 0 <= token < vocab_size]:
        raise ValueError(f"token id {wrong[0]} is not in the vocabulary of {vocab_size}")


def budget_of(wanted: int | None, prompt_tokens: int, context: int) -> int:
    """Tokens that an answer may have: `wanted`, or as many as fit; raises `ValueError` where the prompt leaves no room."""
    room = context - prompt_tokens
    if room < 0 or (room == 0 and wanted != 0):
        raise ValueError(f"the prompt has {prompt_tokens} tokens, but the context is {context} tokens, answer included")
    return room if wanted is None else min(room, wanted)


class Answer:
    """Chooses tokens for one request until it is finished."""

    def __init__(self, request: Request, prompt: list[int], context: int, token_bytes: TokenBytes) -> None:
        """Begin an answer to `prompt`.

        Args:
            request: what is wanted.
            prompt: its prompt as token ids.
            context: tokens that prompt and answer may have together.
            token_bytes: what a token says.

        Raises:
            ValueError: the prompt leaves no room in the context.
        """
        self.budget = budget_of(request.sampling.max_tokens, len(prompt), context)
        self.request, self.prompt, self.token_bytes = request, prompt, token_bytes
        self.text = AnswerText(request.sampling.stop)
        seed = request.sampling.seed
        self.generator = np.random.default_rng(secrets.randbits(64) if seed is None else seed)
        self.tokens: list[int] = []
        self.cached = 0
        self.unsent = 0
        self.scores: list[TokenScore] = []

    @property
    def scores_prompt(self) -> bool:
        """Whether the logits at every position of the prompt are wanted."""
        return self.request.echo and self.request.num_logprobs is not None

    def read_prompt(self, first: int, logits: Sequence[Logits]) -> None:
        """Score the prompt's tokens that stand after the positions from `first` on, from the logits there."""
        if first == 0:
            self.scores.append(self.unpredicted(self.prompt[0]))
        following = self.prompt[first + 1 : first + 1 + len(logits)]
        self.scores += [self.score(token, logits_V) for token, logits_V in zip(following, logits, strict=False)]

    def echo(self) -> Piece | None:
        """The prompt as the answer's first piece, where it is wanted; the only one where no token is."""
        last = self.budget == 0
        if not self.request.echo:
            return self.piece("", "length") if last else None
        text = b"".join(map(self.token_bytes, self.prompt)).decode(errors="replace")
        return self.piece(text, "length" if last else None)

    def take(self, logits_V: Logits, is_end: Callable[[int], bool]) -> Piece | None:
        """Choose the next token; a piece if any text is certain now. The last one has a finish reason."""
        token = choose(logits_V, self.request.sampling, self.generator)
        self.tokens.append(token)
        self.unsent += 1
        ended = is_end(token)
        last = ended or len(self.tokens) == self.budget
        text = self.text.add(b"" if ended else self.token_bytes(token), final=last)
        # Whoever scores prompts takes the last score for that of the one generated token, also where it ends the answer.
        if self.request.num_logprobs is not None and (not ended or self.request.echo):
            self.scores.append(self.score(token, logits_V))
        if ended or self.text.stopped:
            return self.piece(text, "stop")
        return self.piece(text, "length" if last else None) if text or last else None

    def piece(self, text: str, finish_reason: FinishReason | None) -> Piece:
        """What is certain now."""
        scores, self.scores = self.scores, []
        unsent, self.unsent = self.unsent, 0
        counts = Counts(prompt=len(self.prompt), completion=len(self.tokens), cached=self.cached) if finish_reason else None
        return Piece(text=text, num_tokens=unsent, scores=scores, finish_reason=finish_reason, counts=counts)

    def score(self, token: int, logits_V: Logits) -> TokenScore:
        """The score of the token that stands after these logits."""
        total = log_normalizer(logits_V)
        best = likeliest(logits_V, self.request.num_logprobs or 0).tolist()
        top = [Scored(**self.named(other), logprob=float(logits_V[other]) - total) for other in best]
        return TokenScore(**self.named(token), logprob=float(logits_V[token]) - total, top=top)

    def unpredicted(self, token: int) -> TokenScore:
        """The score of a prompt's first token."""
        return TokenScore(**self.named(token), logprob=None)

    def named(self, token: int) -> dict:
        """A token's text and bytes."""
        data = self.token_bytes(token)
        return {"token": data.decode(errors="replace"), "bytes": list(data)}
