"""Before anything is parsed: who may ask (API keys), and how long a body may be."""

import hashlib
import hmac

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wfray.serving.errors import ApiError

GUARDED = "/v1/"


def key_hash(key: str) -> str:
    """SHA-256 (hex): what replicas know of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class Guard:
    """ASGI middleware; `key_hashes` empty lets everybody in."""

    def __init__(self, app: ASGIApp, key_hashes: list[str], max_body_bytes: int) -> None:
        self.app, self.key_hashes, self.max_body_bytes = app, key_hashes, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module docstring."""
        if scope["type"] != "http" or GUARDED not in scope["path"]:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self.refusal(headers.get(b"authorization", b"").decode("latin-1"), headers.get(b"content-length", b"0"))
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        await self.app(scope, self.counted(receive), send)

    def refusal(self, authorization: str, length: bytes) -> ApiError | None:
        """Why a request is refused by its headers."""
        if self.key_hashes and not self.knows(authorization):
            message = "Incorrect API key provided: send one of this server's keys as `Authorization: Bearer <key>`"
            return ApiError(401, message, "invalid_request_error", code="invalid_api_key", www_authenticate="Bearer")
        if length.isdigit() and int(length) > self.max_body_bytes:
            return ApiError(413, self.too_long(), "invalid_request_error", code="request_too_large")
        return None

    def knows(self, authorization: str) -> bool:
        """Whether a header bears a key; takes the same time whatever it bears."""
        kind, _, key = authorization.partition(" ")
        offered = key_hash(key.strip())
        found = [hmac.compare_digest(offered, known) for known in self.key_hashes]
        return kind.lower() == "bearer" and any(found)

    def counted(self, receive: Receive) -> Receive:
        """The same body, which ends in 413 where it is too long."""
        total = 0

        async def receive_counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.max_body_bytes:
                raise HTTPException(413, self.too_long())
            return message

        return receive_counted

    def too_long(self) -> str:
        """The message of 413."""
        return f"the body is longer than {self.max_body_bytes} bytes, the most that this server reads"
