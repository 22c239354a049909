"""What an engine is: it tokenizes, renders chats and generates token by token, one request at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
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


@dataclass(frozen=True)
class Piece:
    """A piece of an answer. The last one carries the reason of the end."""

    text: str
    num_tokens: int
    """Tokens generated for this piece: several where they form one character or might have begun a stop text."""
    finish_reason: FinishReason | None = None


class Engine(Protocol):
    """A model that generates. Not thread-safe: see `EngineQueue`."""

    context: int
    """Prompt and answer together, tokens."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a plain prompt."""

    def render_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's own chat template, up to where the answer begins."""

    def generate(self, prompt: list[int], sampling: Sampling) -> Iterator[Piece]:
        """Pieces of the answer as they come.

        Raises:
            ValueError: the prompt leaves no room in the context.
        """

    def close(self) -> None:
        """Free the model."""
