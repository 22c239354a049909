"""Answers in OpenAI's shapes: the two kinds of completions differ in how a choice is laid out, and in nothing else."""

import codecs
from abc import ABC, abstractmethod
from typing import Any

from wfray.serving.engine import Counts, Piece, Scored, TokenScore

Json = dict[str, Any]


class Shape(ABC):
    """One kind of completion."""

    prefix: str
    object: str
    chunk_object: str

    @abstractmethod
    def content(self, text: str) -> Json:
        """A whole answer."""

    @abstractmethod
    def delta(self, text: str, first: bool) -> Json:
        """A streamed piece."""

    @abstractmethod
    def logprobs(self, scores: list[TokenScore], offset: int) -> Json | None:
        """Scores of tokens that begin `offset` characters into the answer."""

    def choice(self, index: int, piece: Piece, is_scored: bool) -> Json:
        """The choice of a whole answer, given as one piece; `is_scored` where log-probabilities are wanted, be there tokens or not."""
        return {"index": index, **self.content(piece.text), **self.ending(piece, 0, is_scored)}

    def chunk(self, index: int, piece: Piece, offset: int | None) -> Json:
        """The choice of a streamed piece before which `offset` characters were sent, None for the first."""
        return {"index": index, **self.delta(piece.text, first=offset is None), **self.ending(piece, offset or 0, bool(piece.scores))}

    def ending(self, piece: Piece, offset: int, is_scored: bool) -> Json:
        """Log-probabilities, where they are wanted, and the reason of the end."""
        return {"logprobs": self.logprobs(piece.scores, offset) if is_scored else None, "finish_reason": piece.finish_reason}


class ChatShape(Shape):
    """POST /v1/chat/completions."""

    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def content(self, text: str) -> Json:
        """See `Shape.content`."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str, first: bool) -> Json:
        """See `Shape.delta`."""
        return {"delta": {"role": "assistant", "content": text} if first else {"content": text}}

    def logprobs(self, scores: list[TokenScore], offset: int) -> Json:
        """See `Shape.logprobs`."""
        return {"content": [score.model_dump(exclude={"top"}) | {"top_logprobs": dump(score.top)} for score in scores], "refusal": None}


class PlainShape(Shape):
    """POST /v1/completions."""

    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def content(self, text: str) -> Json:
        """See `Shape.content`."""
        return {"text": text}

    def delta(self, text: str, first: bool) -> Json:
        """See `Shape.delta`."""
        return {"text": text}

    def logprobs(self, scores: list[TokenScore], offset: int) -> Json:
        """See `Shape.logprobs`."""
        offsets, decoder = [], codecs.getincrementaldecoder("utf-8")(errors="replace")
        for score in scores:
            offsets.append(offset)
            offset += len(decoder.decode(bytes(score.bytes)))
        return {
            "tokens": [score.token for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [by_text(score) for score in scores],
            "text_offset": offsets,
        }


def dump(scores: list[Scored]) -> list[Json]:
    """As JSON."""
    return [score.model_dump() for score in scores]


def by_text(score: TokenScore) -> dict[str, float] | None:
    """The likeliest tokens by their texts, and the one that stands there; of two with one text the likelier counts."""
    if score.logprob is None:
        return None
    found: dict[str, float] = {}
    for other in [*score.top, score]:
        found.setdefault(other.token, other.logprob)  # type: ignore[arg-type]
    return found


def usage(counts: list[Counts], choices_per_prompt: int) -> Json:
    """OpenAI's token counts; a prompt counts once, however many choices it has."""
    prompt = sum(count.prompt for count in counts[::choices_per_prompt])
    completion = sum(count.completion for count in counts)
    cached = sum(count.cached for count in counts[::choices_per_prompt])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


CHAT, PLAIN = ChatShape(), PlainShape()
