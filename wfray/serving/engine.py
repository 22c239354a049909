"""What an engine is: a model that works on several answers at once, a step at a time, in a process of its own.

The process (`wfray.serving.process`) hands requests to `Engine.add` and calls `Engine.step` as long as `Engine.busy`; a step computes
about one token for every answer under way, or one block for an engine that generates blocks, and returns what has become
certain. So an engine is single-threaded, blocking code that knows nothing of sockets or HTTP. Everything here travels between processes
as JSON.
"""

from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]
Chat = list[dict[str, str]]
"""Messages, each with `role` and `content`."""


class Wire(BaseModel):
    """Immutable, and strict about its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampling(Wire):
    """How the next token is chosen, and when to stop."""

    max_tokens: int | None = None
    """None: until the context is full."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None
    """The same seed, prompt and engine give the same answer; None draws one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it."""


class Request(Wire):
    """One answer that is wanted."""

    prompt: str | list[int] | Chat
    """Text, token ids, or a conversation, which is rendered in the model's own chat template up to where the answer begins."""
    sampling: Sampling = Sampling()
    num_logprobs: int | None = None
    """The likeliest tokens to report at each position, beside the one that stands there; None reports nothing."""
    echo: bool = False
    """Whether the answer begins with the prompt: its text, and its log-probabilities where these are wanted."""


class Scored(Wire):
    """A token and its natural log-probability before temperature and top-p; None for a prompt's first token, which nothing predicts."""

    token: str
    """Its text; bytes that are no whole character stand as replacement characters."""
    bytes: list[int]
    logprob: float | None


class TokenScore(Scored):
    """The token that stands at a position, and the likeliest ones there, best first."""

    top: list[Scored] = []


class Counts(Wire):
    """Tokens of an answer."""

    prompt: int
    completion: int
    cached: int = 0
    """Of the prompt, those that were computed before."""


class Piece(Wire):
    """A piece of an answer. The last one carries the reason of the end and the counts."""

    text: str
    num_tokens: int
    """Tokens generated for this piece: several where they form one character or might have begun a stop text."""
    scores: list[TokenScore] = []
    finish_reason: FinishReason | None = None
    counts: Counts | None = None


def join(first: Piece | None, second: Piece | None) -> Piece | None:
    """Two pieces that follow each other, as one."""
    if first is None or second is None:
        return first or second
    text, num_tokens, scores = first.text + second.text, first.num_tokens + second.num_tokens, first.scores + second.scores
    return second.model_copy(update={"text": text, "num_tokens": num_tokens, "scores": scores})


class Engine(Protocol):
    """A model that generates. An exception other than `ValueError` ends its process, and a new one takes over."""

    context: int
    """Prompt and answer together, tokens."""
    slots: int
    """Answers that it works on at once; more wait in order."""
    busy: bool
    """Whether there is anything to compute."""

    def add(self, number: int, request: Request) -> None:
        """Take a request under a number.

        Raises:
            ValueError: it cannot be answered: too long for the context, no chat template, or something that this engine cannot do.
        """

    def step(self) -> list[tuple[int, Piece]]:
        """Compute a little for every answer under way: (number, piece) of what is certain now."""

    def drop(self, number: int) -> None:
        """Forget an answer that nobody waits for any more; one that is not there is no mistake."""

    def close(self) -> None:
        """Free the model."""
