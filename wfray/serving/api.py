"""The OpenAI-compatible HTTP application over gates: models, completions, health, metrics, the chat page.

The models are looked up at each request, so that they can be replaced while the application runs.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from wfray.serving.completions import Completion
from wfray.serving.errors import ApiError, add_error_handlers
from wfray.serving.gate import Gate
from wfray.serving.guard import Guard
from wfray.serving.meter import Figures
from wfray.serving.schema import ChatRequest, CompletionRequest
from wfray.serving.shapes import CHAT, PLAIN

PAGE = Path(__file__).parent / "page.html"


@dataclass(frozen=True)
class Access:
    """Who may ask, and how much."""

    key_hashes: list[str] = field(default_factory=list)
    """Of the API keys that are let in; none lets everybody in."""
    max_body_bytes: int = 4 << 20


def build_app(gates: Mapping[str, Gate], figures: Figures, access: Access) -> FastAPI:
    """The application.

    Args:
        gates: the models by name; may change while the application runs.
        figures: what they count.
        access: who may ask.
    """
    app = FastAPI(title="WrinkleFree", openapi_url=None)
    created = int(time.time())

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    @app.get("/health")
    async def health() -> Response:
        troubles = {name: trouble for name, gate in gates.items() if (trouble := trouble_of(gate))}
        body: dict[str, Any] = {"status": "failing" if troubles else "ok", "models": sorted(gates)}
        return JSONResponse(body | ({"troubles": troubles} if troubles else {}), status_code=503 if troubles else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        for name, gate in gates.items():
            figures.restarts.labels(name).set(gate.backend.restarts)
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card(name, created) for name in gates]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        find_gate(gates, name)
        return model_card(name, created)

    @app.post("/v1/chat/completions")
    async def chat_completions(wanted: ChatRequest, http: Request) -> Response:
        return await Completion(find_gate(gates, wanted.model), wanted, CHAT).answer(http)

    @app.post("/v1/completions")
    async def completions(wanted: CompletionRequest, http: Request) -> Response:
        return await Completion(find_gate(gates, wanted.model), wanted, PLAIN).answer(http)

    add_error_handlers(app)
    app.add_middleware(Guard, key_hashes=access.key_hashes, max_body_bytes=access.max_body_bytes)
    return app


def model_card(name: str, created: int) -> dict[str, Any]:
    """A model in OpenAI's shape; `created` is when this replica began, in seconds of the epoch."""
    return {"id": name, "object": "model", "created": created, "owned_by": "wrinklefree"}


def find_gate(gates: Mapping[str, Gate], name: str) -> Gate:
    """The gate of a model, or 404."""
    if name not in gates:
        message = f"The model {name!r} does not exist; there are: {', '.join(sorted(gates))}"
        raise ApiError(404, message, "invalid_request_error", "model", "model_not_found")
    return gates[name]


def trouble_of(gate: Gate) -> str | None:
    """Why a model cannot answer, if it cannot."""
    try:
        gate.backend.check_health()
    except RuntimeError as error:
        return str(error)
    return None
