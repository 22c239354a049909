"""Requests and answers of OpenAI's API, as far as the engines go; a field that is not here is refused, never ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from wfray.serving.engine import Sampling

Stop = Annotated[str | list[str] | None, Field(union_mode="left_to_right")]


class Strict(BaseModel):
    """Refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    """One part of a message in the list form."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

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
    max_tokens: PositiveInt | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**32)
    stop: Stop = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    user: str | None = None
    """Accepted for compatibility; nothing depends on it."""

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def budget(self) -> int | None:
        """Most tokens of the answer; None: until the context is full."""
        return self.max_tokens

    def sampling(self) -> Sampling:
        """The engine's view of this request."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(self.budget, self.temperature, self.top_p, self.seed, stop)


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: PositiveInt | None = None
    """OpenAI's newer name of max_tokens."""

    @property
    def budget(self) -> int | None:
        """Either name of it."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str
    max_tokens: PositiveInt | None = 16
    """OpenAI's default."""


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Shape(BaseModel):
    """How one kind of completion is laid out: the only difference between chat and plain ones."""

    prefix: str
    object: str
    chunk_object: str
    chat: bool

    def choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """The choice of a whole answer."""
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def chunk_choice(self, text: str, finish_reason: str | None, first: bool) -> dict[str, Any]:
        """The choice of one streamed piece."""
        role = {"role": "assistant"} if first else {}
        content: dict[str, Any] = {"delta": {**role, "content": text}} if self.chat else {"text": text}
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}


CHAT = Shape(prefix="chatcmpl", object="chat.completion", chunk_object="chat.completion.chunk", chat=True)
PLAIN = Shape(prefix="cmpl", object="text_completion", chunk_object="text_completion", chat=False)
