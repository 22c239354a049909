"""The teacher's way in for clients outside Ray: an application of its own beside the teacher's, deployed only where it is wanted.

It speaks HTTP and checks tokens in a process that holds no model; the teacher itself has no route. All its clients together are one
client of the teacher, with one share of its time.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from wfray.config.teacher import HttpAccess, TeacherConfig
from wfray.teacher.http import Overloaded, build_app, token_hash
from wfray.teacher.rows import Arrays
from wfray.teacher.signals import SignalRequest

CLIENT = "http"
MIN_TOKEN_CHARACTERS = 16


@serve.ingress()
class Gateway:
    """One replica."""

    def __init__(self, application: str, token_sha256: str, max_body_bytes: int) -> None:
        self.handle = serve.get_app_handle(application)
        self.token_sha256, self.max_body_bytes = token_sha256, max_body_bytes

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application."""
        return build_app(self.ask, self.fingerprint, self.token_sha256, self.max_body_bytes)

    async def ask(self, batch: Arrays, request: SignalRequest) -> tuple[str, Arrays]:
        """See `wfray.teacher.http.Ask`."""
        try:
            answer = await self.handle.signals.remote(CLIENT, batch, request.model_dump())
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, ValueError) else error) from None
        except BackPressureError:
            raise Overloaded from None
        return answer["teacher"], answer["arrays"]

    async def fingerprint(self) -> dict[str, Any]:
        """Who the teacher is."""
        return await self.handle.fingerprint.remote()


def gateway_name(application: str) -> str:
    """The name of the application beside `application`."""
    return f"{application}-http"


def gateway_of(config: TeacherConfig, access: HttpAccess) -> serve.RunTarget:
    """What to deploy.

    Raises:
        ValueError: there is no token, or one that is too short.
    """
    token = read_token(Path(access.token_file))
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": config.max_queued_requests}
    deployment = serve.deployment(num_replicas=1, **options)(Gateway)
    application = deployment.bind(config.application, token_hash(token), int(access.max_body_mb * 2**20))
    return serve.RunTarget(application, name=gateway_name(config.application), route_prefix=f"/{config.application}")


def read_token(path: Path) -> str:
    """The token in a file."""
    token = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ValueError(
            f"http.token_file {str(path)!r} must be a file with a token of at least {MIN_TOKEN_CHARACTERS} characters, for example: "
            f"(umask 077; openssl rand -hex 32 > {path})"
        )
    return token
