"""The server's role: one OpenAI-compatible Ray Serve application of one or more models, at a path of its own; it outlives the job.

A replica holds one engine a model, each with a thread and a queue of its own, so that its event loop stays free for health
checks and for other models. A request's pieces are streamed as they come.
"""

import time
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve.schema import ApplicationStatus

from actors.applications import http_port, start_serve
from actors.placement import resources_of
from wfray.config.serve import ServeConfig
from wfray.serving.api import build_app
from wfray.serving.llama_cpp_engine import LlamaCppEngine
from wfray.serving.queue import EngineQueue


@serve.ingress()
class Server:
    """One replica."""

    def __init__(self, models: dict[str, dict[str, str | int]]) -> None:
        """Load all models: name -> arguments of `LlamaCppEngine`."""
        self.queues = {
            name: EngineQueue(LlamaCppEngine(Path(str(model["file"])), int(model["context"]), int(model["threads"])))
            for name, model in models.items()
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application over this replica's engines."""
        return build_app(self.queues)


def deploy(config: ServeConfig, files: dict[str, Path]) -> str:
    """Deploy the application and wait until it answers.

    Args:
        config: the application.
        files: the GGUF file of each model, by name.

    Returns:
        The base URL, to which clients add /v1/...

    Raises:
        ValueError: a model cannot be loaded, or the application is not up in time.
    """
    for model in config.models:
        # Once here, so that a file that cannot be served fails the job with its own message, not a replica again and again.
        LlamaCppEngine(files[model.name], model.context, model.threads).close()
    start_serve()
    models = {model.name: {"file": str(files[model.name]), "context": model.context, "threads": model.threads} for model in config.models}
    deployment = serve.deployment(
        num_replicas=config.num_replicas,
        ray_actor_options={"num_cpus": config.num_cpus, "resources": resources_of("serve")},
        max_ongoing_requests=config.max_ongoing_requests,
    )(Server)
    target = serve.RunTarget(deployment.bind(models), name=config.application, route_prefix=f"/{config.application}")
    serve.run_many([target], wait_for_applications_running=False)
    wait_until_running(config)
    return base_url(config)


def base_url(config: ServeConfig) -> str:
    """Where the application listens."""
    return f"http://127.0.0.1:{http_port()}/{config.application}"


def is_running(config: ServeConfig) -> bool:
    """Whether the application is up on this cluster."""
    return status_of(config) == ApplicationStatus.RUNNING


def status_of(config: ServeConfig) -> ApplicationStatus:
    """The application's status on this cluster."""
    application = serve.status().applications.get(config.application)
    return ApplicationStatus.NOT_STARTED if application is None else application.status


def wait_until_running(config: ServeConfig) -> None:
    """Wait for all replicas; `ValueError` when they fail or take too long."""
    deadline = time.monotonic() + config.start_timeout_seconds
    while (status := status_of(config)) != ApplicationStatus.RUNNING:
        if status == ApplicationStatus.DEPLOY_FAILED or time.monotonic() > deadline:
            message = serve.status().applications[config.application].message or "see its log in the dashboard"
            raise ValueError(f"application {config.application!r} is {status.value.lower()}, not running: {message}")
        time.sleep(0.2)
