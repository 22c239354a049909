"""`wf dashboard`: tunnels to everything on a head that has a page."""

import shlex
import time

from cluster.identity import token_of
from cluster.lifecycle import find
from cluster.reach import tunnel, tunnel_command
from cluster.tasks import DASHBOARD_PORT, SERVE_PORT

PAGES = {DASHBOARD_PORT: "Ray's dashboard", 3000: "Grafana", 9090: "Prometheus", SERVE_PORT: "Ray Serve, for example /wrinklefree/v1"}


def dashboard(name: str, dry_run: bool) -> None:
    """Hold the tunnels open until Ctrl-C; the ports here are those there.

    Raises:
        ValueError: there is no such cluster, or its head cannot be reached.
    """
    record, ports = find(name), list(PAGES)
    if dry_run:
        print(shlex.join(tunnel_command(record.sky_name, {port: port for port in ports})))
        return
    token = token_of(name)
    with tunnel(record.sky_name, ports, ports):
        for port, text in PAGES.items():
            print(f"  http://127.0.0.1:{port}  {text}")
        print(f"Ray's dashboard asks for the cluster's token: {token}\nCtrl-C closes the tunnels", flush=True)
        while True:
            time.sleep(3600)
