"""The teacher application: one full-precision model behind Ray Serve, asked for signals by any number of students.

A call is one micro-batch of packed rows in, one dictionary of numpy arrays out (see `wfray.teacher.signals`). A replica computes
one pass at a time in a thread, so that its event loop stays free for health checks, and shares its time out fairly among students (see
`wfray.teacher.queue`); it holds `max_queued_requests`, and those beyond wait with the callers, who keep only a few on their way.

Deployed again under its name, an application is replaced in place: an old replica finishes what it holds, callers wait while the new
one loads its model, and no request is lost. Every answer names the teacher that gave it.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import serve

from actors.applications import is_deployed, scaling, start_serve, wait_until_running
from actors.placement import gpus_for, resources_of
from actors.teacher_http import gateway_name, gateway_of
from actors.teacher_metrics import ReplicaMetrics
from wfray.config.teacher import TeacherConfig
from wfray.quant.determinism import use_deterministic_algorithms
from wfray.teacher import SignalRequest, TeacherService, make_service
from wfray.teacher.rows import Arrays

DEPLOYMENT = "Teacher"
SHUTDOWN_SECONDS = 60.0
"""What a replaced replica has to finish what it holds."""


@serve.deployment(name=DEPLOYMENT)
class Teacher:
    """One replica."""

    def __init__(self, config: dict[str, Any], directory: str) -> None:
        """Load the model in `directory` and give every promised wire once."""
        parsed = TeacherConfig.model_validate(config)
        if parsed.threads is not None:
            torch.set_num_threads(parsed.threads)
        use_deterministic_algorithms()
        self.service: TeacherService = make_service(parsed, Path(directory))
        self.head_bits = self.service.engine.head()
        self.metrics = ReplicaMetrics(parsed.application, self.service)

    async def signals(self, client: str, batch: Arrays, request: dict[str, Any]) -> dict[str, Any]:
        """The teacher's digest and its answer to one micro-batch; see `TeacherService.answer`."""
        arrays = await self.service.answer(client, batch, SignalRequest.model_validate(request))
        return {"teacher": self.service.engine.fingerprint.digest, "arrays": arrays}

    async def fingerprint(self) -> dict[str, Any]:
        """Who this teacher is."""
        return self.service.engine.fingerprint.model_dump()

    async def head(self) -> np.ndarray:
        """The LM head [V, C] as bfloat16 bits."""
        return self.head_bits

    async def status(self) -> dict[str, Any]:
        """What this replica is and did."""
        return {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id(), **self.service.status()}

    async def check_health(self) -> None:
        """Called by Serve: raises when the engine is gone, upon which Serve starts the replica again."""
        self.service.engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "service"):
            self.service.close()


def deploy(config: TeacherConfig, directory: Path) -> None:
    """Deploy the application, or replace it, and wait until it answers; it outlives the job that deployed it.

    Raises:
        ValueError: it is not up in time, or cannot be.
    """
    check_resources(config)
    start_serve()
    application = Teacher.options(  # type: ignore[attr-defined]
        **scaling(config.num_replicas),
        ray_actor_options={
            "num_cpus": config.num_cpus,
            "num_gpus": min(1, gpus_for("teacher")) if config.num_gpus is None else config.num_gpus,
            "resources": {**resources_of("teacher"), **config.resources},
        },
        max_ongoing_requests=config.max_queued_requests,
        max_queued_requests=config.max_queued_requests,
        max_constructor_retry_count=1,
        # A line for every micro-batch says nothing that the metrics do not.
        logging_config={"enable_access_log": False},
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        # Old replicas stop before new ones start: two models at once might not fit where one does.
        max_surge_percent=0,
    ).bind(config.model_dump(mode="json"), str(directory))
    gateway = gateway_of(config, config.http) if config.http else None
    serve.run_many([serve.RunTarget(application, name=config.application, route_prefix=None)], wait_for_applications_running=False)
    wait_until_running(config.application, config.start_timeout_seconds)
    if gateway is not None:
        serve.run_many([gateway], wait_for_applications_running=False)
        wait_until_running(gateway.name, config.start_timeout_seconds)
    elif is_deployed(gateway_name(config.application)):
        serve.delete(gateway_name(config.application))


def take_down(application: str) -> None:
    """Take an application down, with its way in over HTTP; students that ask it wait for another."""
    find_running(application)
    for name in filter(is_deployed, (gateway_name(application), application)):
        serve.delete(name)


def find_running(application: str) -> None:
    """Raise `ValueError` naming those that are deployed when `application` is not."""
    if not is_deployed(application):
        deployed = ", ".join(serve.status().applications) or "none"
        raise ValueError(f"application {application!r} is not deployed on this cluster; deployed: {deployed}")


def check_resources(config: TeacherConfig) -> None:
    """Say what no node of the cluster has now; an autoscaler may add one that has it."""
    for name in sorted(set(config.resources) - set(ray.cluster_resources())):
        print(
            f"no node of this cluster has the resource {name!r} that the teacher asks for; waiting for one. Start a node with "
            f"ray start --resources='{{\"{name}\": 1}}', or deploy with resources={{}}",
            flush=True,
        )


def status_of(application: str) -> list[dict[str, Any]]:
    """What every replica of a running application is and did.

    Raises:
        ValueError: there is no such application.
    """
    find_running(application)
    replicas = serve.get_deployment_handle(DEPLOYMENT, application).broadcast("status").results(timeout_s=60)
    return sorted(replicas, key=lambda replica: replica["pid"])
