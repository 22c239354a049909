"""Ray Serve on this cluster: started once with one HTTP proxy on loopback, shared by the teacher and the servers.

The port is a property of the cluster (`WFRAY_HTTP_PORT`, 8000 unless set), since whoever starts Serve first decides it.
"""

import os
import time

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle


def http_port() -> int:
    """The port of Serve's HTTP proxy on this cluster."""
    return int(os.environ.get("WFRAY_HTTP_PORT", "8000"))


def start_serve() -> None:
    """Start Serve, or join it where it runs already."""
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=http_port()))


def find_application(name: str, timeout_seconds: float, mend: str) -> DeploymentHandle:
    """The handle of an application that is up, waiting for it and saying so every ten seconds.

    Raises:
        ValueError: it is not there after `timeout_seconds`; the message ends with `mend`.
    """
    started = said = time.monotonic()
    while True:
        try:
            return serve.get_app_handle(name)
        except RayServeException:
            now = time.monotonic()
            if now - started > timeout_seconds:
                raise ValueError(f"application {name!r} is not deployed on this cluster after {timeout_seconds:.0f} s. {mend}") from None
            if now - said > 10:
                print(f"waiting for application {name!r}, {now - started:.0f} of {timeout_seconds:.0f} s", flush=True)
                said = now
            time.sleep(0.5)
