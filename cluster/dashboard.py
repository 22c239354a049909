"""`wf dashboard`: tunnels to everything on a head that has a page."""

import shlex

from cluster.identity import token_of
from cluster.lifecycle import find
from cluster.reach import Unreachable, open_tunnels, tunnel_command, why_unreachable
from cluster.tasks import DASHBOARD_PORT, SERVE_PORT

PAGES = {DASHBOARD_PORT: "Ray's dashboard", 3000: "Grafana", 9090: "Prometheus", SERVE_PORT: "Ray Serve, for example /wrinklefree/v1"}


def dashboard(name: str, dry_run: bool) -> None:
    """Hold the tunnels open until Ctrl-C; the ports here are those there.

    Raises:
        ValueError: there is no such cluster, its head cannot be reached any more, or one of the ports is taken here.
    """
    record, ports = find(name), {port: port for port in PAGES}
    if dry_run:
        print(shlex.join(tunnel_command(record.sky_name, ports)))
        return
    token = token_of(name)
    with open_tunnels(record.sky_name, ports) as process:
        for port, text in PAGES.items():
            print(f"  http://127.0.0.1:{port}  {text}")
        print(f"Ray's dashboard asks for the cluster's token: {token}\nCtrl-C closes the tunnels", flush=True)
        process.wait()
        assert process.stderr is not None
        raise Unreachable(why_unreachable(record.sky_name, process.stderr.read()))
