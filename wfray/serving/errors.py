"""Every error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wfray.serving.backend import EngineLost
from wfray.serving.gate import DeadlinePassed, Overloaded

CLIENT_GONE = 499
TYPES = ("str", "int")
"""What pydantic puts into the place of an error where a field has one of several types."""


class ApiError(Exception):
    """A refusal with its status."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        """The HTTP answer."""
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)

    def event(self) -> str:
        """The last event of a stream that fails after its headers were sent."""
        return f"data: {json.dumps(self.body)}\n\n"


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error while its answer is made."""
    match error:
        case ApiError():
            return error
        case Overloaded():
            return ApiError(429, str(error), "rate_limit_error", code="rate_limit_exceeded", retry_after=str(error.retry_after))
        case DeadlinePassed():
            return ApiError(504, str(error), "timeout", code="deadline_passed")
        case EngineLost():
            return ApiError(503, f"{error}; please try again", "server_error", code="engine_lost", retry_after="1")
        case ValueError():
            return ApiError(400, str(error), "invalid_request_error")
    return ApiError(500, f"{type(error).__name__}: {error}", "server_error")


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Errors of ours."""
    return as_api_error(error).response()


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """400 naming the first wrong field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [part for part in first["loc"][1:] if isinstance(part, int) or (part.isidentifier() and part not in TYPES)]
    param = None if first["type"] == "json_invalid" else ".".join(map(str, place)) or None
    return ApiError(400, f"{param or 'body'}: {first['msg']}", "invalid_request_error", param).response()


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """A refusal of the router: unknown path or method, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    detail: Any = error.detail
    return ApiError(error.status_code, str(detail), "invalid_request_error").response()


def add_error_handlers(app: FastAPI) -> None:
    """Have every error of `app` in this shape; a bug's traceback goes to the replica's log."""
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    for kind in (ApiError, Overloaded, DeadlinePassed, EngineLost, ValueError, Exception):
        app.add_exception_handler(kind, on_error)
