"""The HTTP application for clients outside Ray: a bearer token, JSON in, safetensors out.

    POST /signals  {"input_ids": [[1, 2, 3]], "segment_ids": [[1, 1, 1]], "wires": ["topk"], "num_ids": 8}
    GET  /fingerprint

Rows may be packed; without `segment_ids` every row is one document. The answer holds the arrays of `wfray.teacher.signals` by
name, those in bfloat16 as such, and the header `x-teacher` names the teacher. Only the token's SHA-256 is kept.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import Field, ValidationError
from safetensors.torch import save
from starlette.responses import Response

from wfray.data.batch import derive_positions
from wfray.teacher.rows import Arrays
from wfray.teacher.signals import SignalRequest, as_tensors

Ask = Callable[[Arrays, SignalRequest], Awaitable[tuple[str, Arrays]]]
"""Batch and request -> digest and arrays; raises `ValueError` for what cannot be answered and `Overloaded` for not now."""
Row = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Overloaded(Exception):
    """The teacher takes no more requests now."""


class HttpRequest(SignalRequest):
    """The body of a request."""

    input_ids: Annotated[list[Row], Field(min_length=1)]
    segment_ids: list[Row] | None = None

    def batch(self) -> Arrays:
        """The rows as a packed batch; raises `ValueError` where they are of unequal lengths."""
        ids = rectangle("input_ids", self.input_ids)
        segments = np.ones_like(ids) if self.segment_ids is None else rectangle("segment_ids", self.segment_ids)
        if ids.shape != segments.shape:
            raise ValueError(f"input_ids {ids.shape} and segment_ids {segments.shape} must have one shape")
        return {"input_ids": ids, "position_ids": derive_positions(segments), "segment_ids": segments}


def rectangle(name: str, rows: list[list[int]]) -> np.ndarray:
    """Rows of one length as int32 [B, T]."""
    if len(set(map(len, rows))) > 1:
        raise ValueError(f"{name}: rows must be of one length; pad them, with segment 0 where padding stands")
    return np.array(rows, dtype=np.int32)


def token_hash(token: str) -> str:
    """SHA-256 (hex)."""
    return hashlib.sha256(token.encode()).hexdigest()


def build_app(ask: Ask, fingerprint: Callable[[], Awaitable[dict[str, Any]]], token_sha256: str, max_body_bytes: int) -> FastAPI:
    """The application.

    Args:
        ask: how signals are asked for.
        fingerprint: who the teacher is.
        token_sha256: hash of the token that every request must bear.
        max_body_bytes: larger bodies are refused unread.
    """

    async def check_token(request: Request) -> None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(token_hash(token), token_sha256):
            raise HTTPException(401, "send the teacher's token as `Authorization: Bearer <token>`", {"www-authenticate": "Bearer"})

    app = FastAPI(title="WrinkleFree teacher", dependencies=[Depends(check_token)], openapi_url=None)

    @app.get("/fingerprint")
    async def who() -> dict[str, Any]:
        return await fingerprint()

    @app.post("/signals")
    async def signals(request: Request) -> Response:
        body = await read_body(request, max_body_bytes)
        try:
            wanted = HttpRequest.model_validate_json(body)
            digest, arrays = await ask(wanted.batch(), SignalRequest(**wanted.model_dump(include=set(SignalRequest.model_fields))))
        except ValidationError as error:
            first = error.errors()[0]
            raise HTTPException(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        except Overloaded:
            raise HTTPException(503, "the teacher takes no more requests now: try again", {"retry-after": "1"}) from None
        return Response(save(as_tensors(arrays)), media_type="application/octet-stream", headers={"x-teacher": digest})

    return app


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body; 413 as soon as it is longer than `max_bytes`."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise HTTPException(413, f"the body is longer than {max_bytes} bytes: send fewer rows")
    return bytes(body)
