"""llama-server's own API, /tokenize and /completion, which bitnet.cpp's server has as llama.cpp's had it when it was forked.

Its OpenAI routes of that time are not OpenAI's: plain completions answer in a form of their own, an answer cut by `max_tokens` says `stop`,
and a chat is rendered in a built-in template, not in the file's. So conversations are rendered here, in the template that the file holds,
tokenized by the server, checked against the context (the server would cut a long prompt without a word), and sent as token ids.

What it cannot do: log-probabilities (the server's are those after temperature and top-p) and echo; a request with a seed does not reuse
what was computed before.
"""

from collections.abc import AsyncGenerator
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp

from wfray.export.gguf_header import metadata
from wfray.serving.answer import budget_of, check_vocabulary
from wfray.serving.backend import EngineLost
from wfray.serving.dialects import Json, check, events
from wfray.serving.engine import Chat, Counts, FinishReason, Piece, Request
from wfray.serving.templates import refusals


class LlamaServerDialect:
    """See the module docstring; implements `Dialect`."""

    def __init__(self, file: Path, context: int) -> None:
        """Read the vocabulary and the chat template of `file`; `context` is of one answer, in tokens.

        Raises:
            ValueError: it is no GGUF file, or has no vocabulary.
        """
        self.found, self.context = metadata(file), context
        if "tokenizer.ggml.tokens" not in self.found:
            raise ValueError(f"{str(file)!r} has no vocabulary")
        self.vocab_size = len(self.found["tokenizer.ggml.tokens"])

    async def ask(self, session: aiohttp.ClientSession, request: Request) -> tuple[str, Json]:
        """See `Dialect.ask`."""
        if request.num_logprobs is not None or request.echo:
            raise ValueError("bitnet.cpp's server gives no log-probabilities and no echo: ask without logprobs and echo")
        tokens, sampling = await self.tokens_of(session, request.prompt), request.sampling
        budget = budget_of(sampling.max_tokens, len(tokens), self.context)
        body = {"prompt": tokens, "n_predict": budget, "temperature": sampling.temperature, "top_p": sampling.top_p}
        # The server's own choices of these cut unlikely tokens off, which nobody asked for.
        body |= {"top_k": 0, "min_p": 0.0, "stop": list(sampling.stop), "stream": True}
        # What was computed in other batches differs in its last bits, which is enough for another draw.
        return "/completion", body | ({"cache_prompt": True} if sampling.seed is None else {"seed": sampling.seed})

    async def read(self, response: aiohttp.ClientResponse, request: Request) -> AsyncGenerator[Piece, None]:
        """See `Dialect.read`."""
        async for event in events(response):
            if event["stop"]:
                yield Piece(text=event["content"], num_tokens=0, finish_reason=reason_of(event), counts=counts_of(event))
                return
            if event["content"]:
                yield Piece(text=event["content"], num_tokens=1)
        raise EngineLost("the server ended an answer without saying why")

    async def tokens_of(self, session: aiohttp.ClientSession, prompt: str | list[int] | Chat) -> list[int]:
        """A prompt as token ids; an empty one is the beginning-of-text token."""
        if isinstance(prompt, str):
            return await tokenize(session, prompt, add_special=True) or [self.found["tokenizer.ggml.bos_token_id"]]
        if prompt and isinstance(prompt[0], dict):
            return await tokenize(session, self.render(prompt), add_special=False)
        tokens: list[int] = prompt  # type: ignore[assignment]
        check_vocabulary(tokens, self.vocab_size)
        return tokens or [self.found["tokenizer.ggml.bos_token_id"]]

    def render(self, messages: Any) -> str:
        """A conversation in the file's own template."""
        if "tokenizer.chat_template" not in self.found:
            raise ValueError("this model has no chat template: use /v1/completions")
        with refusals():
            return str(self.formatter(messages=messages).prompt)

    @cached_property
    def formatter(self) -> Any:
        """The renderer of the template; the import loads llama.cpp's library, which no other server needs."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        words = self.found["tokenizer.ggml.tokens"]
        bos, eos = (words[self.found[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos"))
        return Jinja2ChatFormatter(template=self.found["tokenizer.chat_template"], bos_token=bos, eos_token=eos)


async def tokenize(session: aiohttp.ClientSession, text: str, add_special: bool) -> list[int]:
    """Token ids of a text, by the server; with `add_special` it begins as the vocabulary wants texts to begin."""
    async with session.post("/tokenize", json={"content": text, "add_special": add_special}) as response:
        await check(response)
        return list((await response.json())["tokens"])


def reason_of(event: Json) -> FinishReason:
    """Why an answer ended; `stop_type` is what later versions say."""
    return "length" if event.get("stopped_limit") or event.get("stop_type") == "limit" else "stop"


def counts_of(event: Json) -> Counts:
    """Of the last event of an answer."""
    prompt, computed = event["tokens_evaluated"], event["timings"]["prompt_n"]
    return Counts(prompt=prompt, completion=event["tokens_predicted"], cached=max(prompt - computed, 0))
