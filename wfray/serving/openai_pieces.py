"""Between our requests and pieces and the bodies of another OpenAI-compatible server."""

from collections.abc import AsyncGenerator

import aiohttp

from wfray.serving.backend import EngineLost
from wfray.serving.dialects import Json, events
from wfray.serving.engine import Counts, FinishReason, Piece, Request, Scored, TokenScore

SERVED_AS = "model"
"""The name under which the server behind the replica knows its model."""


class OpenAIDialect:
    """OpenAI's API; implements `Dialect`."""

    def __init__(self, why_no_seeds: str | None = None) -> None:
        """`why_no_seeds` says why the server would ignore a seed, where it would."""
        self.why_no_seeds = why_no_seeds

    async def ask(self, session: aiohttp.ClientSession, request: Request) -> tuple[str, Json]:
        """See `Dialect.ask`."""
        if self.why_no_seeds and request.sampling.seed is not None and request.sampling.temperature > 0:
            raise ValueError(f"seed: {self.why_no_seeds}; ask without it, or with temperature 0")
        return body_of(request)

    def read(self, response: aiohttp.ClientResponse, request: Request) -> AsyncGenerator[Piece, None]:
        """See `Dialect.read`."""
        return whole(response) if request.echo else streamed(response)


async def whole(response: aiohttp.ClientResponse) -> AsyncGenerator[Piece, None]:
    """An answer that comes in one body."""
    body = await response.json()
    yield piece_of(body["choices"][0]).model_copy(update={"counts": counts_of(body["usage"])})


async def streamed(response: aiohttp.ClientResponse) -> AsyncGenerator[Piece, None]:
    """An answer that comes as server-sent events; the last piece waits for the usage, which comes after it."""
    reason: FinishReason | None = None
    counts: Counts | None = None
    async for event in events(response):
        counts = counts_of(event["usage"]) if event.get("usage") else counts
        for choice in event["choices"]:
            piece = piece_of(choice)
            reason = piece.finish_reason or reason
            if piece.text or piece.scores:
                yield piece.model_copy(update={"finish_reason": None})
    if reason is None or counts is None:
        raise EngineLost("the server ended an answer without saying why")
    yield Piece(text="", num_tokens=0, finish_reason=reason, counts=counts)


def body_of(request: Request) -> tuple[str, Json]:
    """The path and body that ask a server for an answer; one that repeats its prompt is not streamed.

    Raises:
        ValueError: a completion has no budget.
    """
    sampling = request.sampling
    options: Json = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    options |= {"model": SERVED_AS, "stop": list(sampling.stop) or None, "stream": not request.echo}
    if not request.echo:
        options["stream_options"] = {"include_usage": True}
    wanted = request.num_logprobs
    if isinstance(request.prompt, list) and request.prompt and isinstance(request.prompt[0], dict):
        options |= {"messages": request.prompt, "logprobs": None if wanted is None else True, "top_logprobs": wanted}
        return "/v1/chat/completions", given(options)
    if sampling.max_tokens is None:
        raise ValueError("max_tokens: this model's server would end a completion without it after 16 tokens: say how many")
    return "/v1/completions", given(options | {"prompt": request.prompt, "logprobs": wanted, "echo": request.echo or None})


def given(options: Json) -> Json:
    """Without those that are None."""
    return {name: value for name, value in options.items() if value is not None}


def piece_of(choice: Json) -> Piece:
    """A choice of either kind, whole or streamed."""
    text = (choice.get("delta") or choice.get("message") or {}).get("content") if "text" not in choice else choice["text"]
    given_reason, scores = choice.get("finish_reason"), scores_of(choice.get("logprobs") or {})
    reason: FinishReason | None = None if given_reason is None else "length" if given_reason == "length" else "stop"
    return Piece(text=text or "", num_tokens=len(scores) or (1 if text else 0), scores=scores, finish_reason=reason)


def scores_of(logprobs: Json) -> list[TokenScore]:
    """Scores in either of OpenAI's layouts."""
    if "content" in logprobs:
        tokens = logprobs["content"] or []
        return [TokenScore(**scored(token), top=[Scored(**scored(other)) for other in token["top_logprobs"]]) for token in tokens]
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs.get("tokens", []))
    found = zip(logprobs.get("tokens", []), logprobs.get("token_logprobs", []), tops, strict=True)
    return [TokenScore(**named(token), logprob=logprob, top=best_first(top)) for token, logprob, top in found]


def best_first(top: dict[str, float] | None) -> list[Scored]:
    """The likeliest tokens of a position."""
    return [Scored(**named(token), logprob=logprob) for token, logprob in sorted((top or {}).items(), key=lambda item: -item[1])]


def scored(token: Json) -> Json:
    """A token of the chat layout."""
    return {**named(token["token"]), "bytes": token.get("bytes") or list(token["token"].encode()), "logprob": token["logprob"]}


def named(token: str) -> Json:
    """Its text and bytes."""
    return {"token": token, "bytes": list(token.encode())}


def counts_of(usage: Json) -> Counts:
    """OpenAI's token counts."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Counts(prompt=usage["prompt_tokens"], completion=usage.get("completion_tokens") or 0, cached=cached)
