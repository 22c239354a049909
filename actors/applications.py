"""Ray Serve on this cluster: started once with one HTTP proxy on loopback, shared by the teacher and the servers.

The port is a property of the cluster (`WFRAY_HTTP_PORT`, 8000 unless set), since whoever starts Serve first decides it.
"""

import os
import time
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from wfray.config.scaling import Autoscaling


def http_port() -> int:
    """The port of Serve's HTTP proxy on this cluster."""
    return int(os.environ.get("WFRAY_HTTP_PORT", "8000"))


def start_serve() -> None:
    """Start Serve, or join it where it runs already."""
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=http_port()))


def scaling(num_replicas: int | Autoscaling) -> dict[str, Any]:
    """A deployment's options for a fixed number of replicas, or as many as the load calls for."""
    if isinstance(num_replicas, int):
        return {"num_replicas": num_replicas}
    config = {
        "min_replicas": num_replicas.min_replicas,
        "max_replicas": num_replicas.max_replicas,
        "target_ongoing_requests": num_replicas.requests_per_replica,
        "upscale_delay_s": num_replicas.upscale_delay_seconds,
        "downscale_delay_s": num_replicas.downscale_delay_seconds,
    }
    return {"autoscaling_config": config}


def is_deployed(name: str) -> bool:
    """Whether there is such an application on this cluster, up or not."""
    return name in serve.status().applications


def find_application(name: str, timeout_seconds: float, mend: str, said: float | None = None) -> DeploymentHandle:
    """The handle of an application, waiting for it and saying so every ten seconds.

    Raises:
        ValueError: it is not there after `timeout_seconds`; the message ends with `mend`. It says that it took `said` seconds, where
            part of the time has gone before.
    """
    total = timeout_seconds if said is None else said
    started = spoke = time.monotonic()
    while True:
        try:
            return serve.get_app_handle(name)
        except RayServeException:
            now = time.monotonic()
            if now - started > timeout_seconds:
                raise ValueError(f"application {name!r} is not deployed on this cluster after {total:.0f} s. {mend}") from None
            if now - spoke > 10:
                print(f"waiting for application {name!r}, {total - timeout_seconds + now - started:.0f} of {total:.0f} s", flush=True)
                spoke = now
            time.sleep(0.5)


def wait_until_running(name: str, timeout_seconds: float) -> None:
    """Wait for all replicas of an application, saying every ten seconds what it waits for.

    Raises:
        ValueError: they fail or take too long.
    """
    started = said = time.monotonic()
    while (application := serve.status().applications[name]).status != ApplicationStatus.RUNNING:
        now = time.monotonic()
        if application.status == ApplicationStatus.DEPLOY_FAILED or now - started > timeout_seconds:
            message = why_not_running(application)
            raise ValueError(f"application {name!r} is {application.status.value.lower()}, not running: {message}")
        if now - said > 10:
            print(f"waiting for application {name!r}, {now - started:.0f} of {timeout_seconds:.0f} s", flush=True)
            said = now
        time.sleep(0.2)


def why_not_running(application: ApplicationStatusOverview) -> str:
    """What Serve knows of it; of an error in a replica the last line, which is the error itself."""
    messages = [deployment.message for deployment in application.deployments.values() if deployment.message]
    lines = "\n".join([*messages, application.message]).strip().splitlines()
    errors = [line for line in lines if "Error: " in line]
    return errors[-1].strip() if errors else " ".join(lines) or "see its log in the dashboard"
