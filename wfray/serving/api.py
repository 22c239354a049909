"""The OpenAI-compatible HTTP application over a set of engine queues: models, completions (whole and streamed), health.

Every error has OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`. A stream's first piece is awaited before its
headers are sent, so that a request that cannot be answered fails with a status code and not inside a stream.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import Response

from wfray.serving.engine import Piece
from wfray.serving.queue import EngineQueue
from wfray.serving.schema import CHAT, PLAIN, ChatRequest, CompletionRequest, GenerationRequest, Shape, Usage

T = TypeVar("T")


def build_app(queues: dict[str, EngineQueue]) -> FastAPI:
    """The application.

    Args:
        queues: an engine queue for each model name.
    """
    app = FastAPI(title="WrinkleFree")
    created = int(time.time())

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "models": sorted(queues)}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        data = [{"id": name, "object": "model", "created": created, "owned_by": "wrinklefree"} for name in queues]
        return {"object": "list", "data": data}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest) -> Response:
        queue = find_queue(queues, request.model)
        with_refusal = queue.render_chat([message.plain() for message in request.messages])
        return await answer(queue, await refused_as_400(with_refusal), request, CHAT)

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest) -> Response:
        queue = find_queue(queues, request.model)
        return await answer(queue, await queue.tokenize(request.prompt), request, PLAIN)

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(AnyHTTPException, on_http_error)
    app.add_exception_handler(Exception, on_failure)
    return app


def find_queue(queues: dict[str, EngineQueue], name: str) -> EngineQueue:
    """The queue of a model, or 404."""
    if name not in queues:
        message = f"The model {name!r} does not exist; there are: {', '.join(sorted(queues))}"
        raise HTTPException(404, {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"})
    return queues[name]


async def refused_as_400(work: Awaitable[T]) -> T:
    """Await an engine's answer; its `ValueError` is the client's mistake."""
    try:
        return await work
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


async def answer(queue: EngineQueue, prompt: list[int], request: GenerationRequest, shape: Shape) -> Response:
    """Generate, and answer whole or as a stream of server-sent events."""
    pieces = queue.generate(prompt, request.sampling())
    first: Piece = await refused_as_400(anext(pieces))
    head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}
    everything = chain(first, pieces)
    if request.stream:
        return StreamingResponse(events(everything, len(prompt), head, request, shape), media_type="text/event-stream")
    text, num_tokens, finish_reason = "", 0, None
    async for piece in everything:
        text, num_tokens, finish_reason = text + piece.text, num_tokens + piece.num_tokens, piece.finish_reason
    body = {"object": shape.object, "choices": [shape.choice(text, finish_reason)], "usage": usage(len(prompt), num_tokens)}
    return JSONResponse({**head, **body})


async def chain(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """`first`, then the rest."""
    yield first
    async for piece in rest:
        yield piece


async def events(
    pieces: AsyncIterator[Piece], num_prompt: int, head: dict[str, Any], request: GenerationRequest, shape: Shape
) -> AsyncIterator[str]:
    """The server-sent events of a streamed answer."""
    num_tokens = 0
    async for piece in pieces:
        choice = shape.chunk_choice(piece.text, piece.finish_reason, first=num_tokens == 0)
        num_tokens += piece.num_tokens
        yield event({**head, "object": shape.chunk_object, "choices": [choice]})
    if request.wants_usage:
        yield event({**head, "object": shape.chunk_object, "choices": [], "usage": usage(num_prompt, num_tokens)})
    yield "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    """OpenAI's token counts."""
    counts = Usage(prompt_tokens=num_prompt, completion_tokens=num_completion, total_tokens=num_prompt + num_completion)
    return counts.model_dump()


def error_response(status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status_code=status)


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """400 naming the first wrong field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return error_response(400, f"{param or 'body'}: {first['msg']}", "invalid_request_error", param)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """A refusal of ours, or of the router (unknown path or method)."""
    assert isinstance(error, AnyHTTPException)
    detail: Any = error.detail
    if isinstance(detail, dict):
        return JSONResponse({"error": detail}, status_code=error.status_code)
    return error_response(error.status_code, str(detail), "invalid_request_error")


async def on_failure(request: Request, error: Exception) -> JSONResponse:
    """500; the traceback goes to the replica's log."""
    return error_response(500, f"{type(error).__name__}: {error}", "server_error")
