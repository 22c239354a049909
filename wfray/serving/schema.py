"""Requests of OpenAI's API, as far as the engines go; a field that is not here is refused, never ignored.

Fields that the engines cannot honour are taken with their neutral value alone, since some clients always send them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from wfray.serving.engine import Request, Sampling

Stop = Annotated[str | list[str] | None, Field(union_mode="left_to_right")]
Prompts = str | list[str] | list[int] | list[list[int]]
MAX_LOGPROBS = 20
NULL_IS_DEFAULT = ("temperature", "top_p", "n", "stream", "echo")
MAX_CHOICES = 64
"""Answers to one HTTP request: prompts times `n`."""


class Strict(BaseModel):
    """Refuses unknown fields, but for those without a value: clients send back whole answers, with all fields that these could have."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def without_unknown_nulls(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        return {name: value for name, value in tree.items() if value is not None or name in cls.model_fields}


class TextPart(Strict):
    """One part of a message in the list form."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    """Accepted for compatibility; chat templates know no names."""
    refusal: None = None
    """Stands in answers, which clients send back as they are."""

    def plain(self) -> dict[str, str]:
        """Role and content, list form joined."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class StreamOptions(Strict):
    """Extras of a streamed answer."""

    include_usage: bool = False


class GenerationRequest(Strict):
    """What both kinds of completions share."""

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Stop = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    user: str | None = None
    """Accepted for compatibility; nothing depends on it."""
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @model_validator(mode="before")
    @classmethod
    def null_is_default(cls, tree: Any) -> Any:
        """In OpenAI's API null is the default of these, and clients send it."""
        if not isinstance(tree, dict):
            return tree
        return {name: value for name, value in tree.items() if value is not None or name not in NULL_IS_DEFAULT}

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int | None, choice: int) -> Sampling:
        """The engine's view of one choice; those of one request have seeds that follow each other."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = None if self.seed is None else self.seed + choice
        return Sampling(max_tokens=max_tokens, temperature=self.temperature, top_p=self.top_p, seed=seed, stop=stop)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: PositiveInt | None = None
    """None: until the context is full."""
    max_completion_tokens: PositiveInt | None = None
    """OpenAI's newer name of max_tokens."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    def requests(self) -> list[Request]:
        """One for each choice."""
        prompt = [message.plain() for message in self.messages]
        budget = self.max_completion_tokens or self.max_tokens
        wanted = (self.top_logprobs or 0) if self.logprobs else None
        return [Request(prompt=prompt, sampling=self.sampling(budget, choice), num_logprobs=wanted) for choice in range(self.n)]


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompts
    """A text or token ids, or a list of either: each has choices of its own."""
    max_tokens: NonNegativeInt | None = 16
    """OpenAI's default; 0 with `echo` scores the prompt alone."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    suffix: None = None
    best_of: Literal[1] | None = None

    def prompts(self) -> list[str | list[int]]:
        """One by one."""
        if isinstance(self.prompt, str) or not self.prompt:
            return [self.prompt or ""]  # type: ignore[list-item]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def requests(self) -> list[Request]:
        """One for each prompt and choice, the choices of a prompt together."""
        return [
            Request(prompt=prompt, sampling=self.sampling(self.max_tokens, choice), num_logprobs=self.logprobs, echo=self.echo)
            for prompt in self.prompts()
            for choice in range(self.n)
        ]
