"""The server's role: one OpenAI-compatible Ray Serve application of one or more models, at a path of its own; it outlives the job.

A replica is an HTTP application and a supervisor: each model runs in a process of its own (see `wfray.serving.host`), so that a crash of
an engine is not one of the replica, and its event loop stays free. Deployed again under its name, only what has changed is loaded, beside
what answers, and no request is dropped; a change of resources starts new replicas first, and the old ones finish what they hold.

Serve's own limit of requests is out of the way: whether there is room is decided in the replica, which says 429 and when to come back.
"""

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import ApplicationStatus

from actors.applications import http_port, scaling, start_serve, wait_until_running
from actors.placement import resources_of
from wfray.config.serve import ServeConfig
from wfray.serving.api import Access, build_app
from wfray.serving.engines import make_backend
from wfray.serving.guard import key_hash
from wfray.serving.host import Host, Hosting

MAX_ONGOING = 10_000


@serve.ingress()
class Server:
    """One replica."""

    def __init__(self, access: dict[str, Any]) -> None:
        self.access, self.host = access, Host()

    async def reconfigure(self, hosting: dict[str, Any]) -> None:
        """Called by Serve at the start and whenever the models change."""
        wanted = Hosting.model_validate(hosting)
        await self.host.apply(wanted)
        self.fingerprint = fingerprint(wanted, Access(**self.access))

    async def served(self) -> str:
        """The fingerprint of what this replica serves, and to whom."""
        return self.fingerprint

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application over this replica's models."""
        return build_app(self.host.gates, self.host.figures, Access(**self.access))

    async def check_health(self) -> None:
        """Called by Serve: raises when an engine cannot be started any more, upon which the replica is replaced."""
        self.host.check_health()


def deploy(config: ServeConfig, files: dict[str, Path]) -> str:
    """Deploy the application, or change it in place, and wait until it answers.

    Args:
        config: the application.
        files: the file or directory of each model, by name.

    Returns:
        The base URL, to which clients add /v1/...

    Raises:
        ValueError: a model cannot be loaded, or the application is not up in time.
    """
    access, hosting = access_of(config), hosting_of(config, files)
    asyncio.run(try_all(hosting))
    start_serve()
    deployment = serve.deployment(
        **scaling(config.num_replicas),
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus, "resources": resources_of("serve")},
        max_ongoing_requests=MAX_ONGOING,
        max_constructor_retry_count=1,
        user_config=hosting.model_dump(mode="json"),
        graceful_shutdown_timeout_s=config.drain_seconds,
        logging_config={"enable_access_log": False},
    )(Server)
    # Serve gives every deployment a version of its own, upon which it replaces all replicas; with equal ones it calls `reconfigure`, which
    # the models need alone.
    deployment._version = f"{code_version()}, {sha256(repr(access).encode()).hexdigest()}"
    target = serve.RunTarget(deployment.bind(vars(access)), name=config.application, route_prefix=f"/{config.application}")
    serve.run_many([target], wait_for_applications_running=False)
    wait_until_running(config.application, config.start_timeout_seconds)
    return base_url(config)


def access_of(config: ServeConfig) -> Access:
    """Who may ask, with the keys as they are in the file now."""
    return Access([key_hash(key) for key in read_keys(config.api_keys_file)], int(config.max_body_mb * 2**20))


def hosting_of(config: ServeConfig, files: dict[str, Path]) -> Hosting:
    """What replicas are to serve, of the files as they are now."""
    return Hosting(config=config, files={n: str(f) for n, f in files.items()}, versions={n: version(f) for n, f in files.items()})


def fingerprint(hosting: Hosting, access: Access) -> str:
    """Changes with anything that an application serves or is served to."""
    return sha256(f"{hosting.model_dump_json()}{access}".encode()).hexdigest()


async def try_all(hosting: Hosting) -> None:
    """Load every model once here, so that one that cannot be served fails the job with its own message, and no replica."""
    for model in hosting.config.models:
        backend = make_backend(model, Path(hosting.files[model.name]), hosting.config)
        await backend.start()
        await backend.close()


def code_version() -> str:
    """Changes with the code that replicas run: the working directory that this job was submitted with."""
    return f"code of {ray.get_runtime_context().runtime_env.get('working_dir')}"


def version(file: Path) -> str:
    """Changes when a file, or one in a directory, is written again."""
    members = sorted(file.rglob("*")) if file.is_dir() else [file]
    return repr([(member.name, member.stat().st_size, member.stat().st_mtime_ns) for member in members if member.is_file()])


def read_keys(path: str | None) -> list[str]:
    """The API keys in a file; none where there is no file named.

    Raises:
        ValueError: the file is missing or empty.
    """
    if path is None:
        return []
    lines = Path(path).read_text(encoding="utf-8").split() if Path(path).is_file() else []
    if not lines:
        raise ValueError(
            f"api_keys_file {path!r} must be a file with one key a line, for example: (umask 077; openssl rand -hex 32 > {path})"
        )
    return lines


def base_url(config: ServeConfig) -> str:
    """Where the application listens."""
    return f"http://127.0.0.1:{http_port()}/{config.application}"


def is_running(config: ServeConfig, files: dict[str, Path]) -> bool:
    """Whether the application is up on this cluster, with these files, settings and keys."""
    application = serve.status().applications.get(config.application)
    if application is None or application.status != ApplicationStatus.RUNNING:
        return False
    served = serve.get_app_handle(config.application).served.remote().result(timeout_s=config.start_timeout_seconds)
    return bool(served == fingerprint(hosting_of(config, files), access_of(config)))
