"""What a cluster costs: an estimate before it is made, and what it has spent since, on a page for Prometheus."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from cluster.nodes import State
from cluster.prices import node_price
from wfray.config.cluster import ClusterConfig

REFRESH_SECONDS = 5.0


@dataclass(frozen=True)
class Line:
    """One row of an estimate."""

    what: str
    nodes: int
    dollars_per_hour: float
    """Of one node."""
    source: str


def estimate(config: ClusterConfig) -> list[Line]:
    """The head or pod, and every group at its most."""
    first = config.head or config.pod
    assert first is not None
    machines = [("pod" if config.pod else "head", 1, first), *((name, group.max_nodes, group) for name, group in config.groups.items())]
    return [Line(name, nodes, (price := node_price(config, machine)).dollars_per_hour, price.source) for name, nodes, machine in machines]


def estimate_text(config: ClusterConfig) -> str:
    """The same for people."""
    lines = estimate(config)
    rows = [f"  {line.what:<12} {line.nodes:>3} x ${line.dollars_per_hour:8.3f}/h   {line.source}" for line in lines]
    least, most = lines[0].dollars_per_hour, sum(line.nodes * line.dollars_per_hour for line in lines)
    limits = config.limits
    capped = min(most, limits.max_dollars_per_hour)
    return "\n".join(
        [
            *rows,
            f"  idle ${least:.2f}/h; all groups at their most ${most:.2f}/h, kept to ${capped:.2f}/h by limits.max_dollars_per_hour and to "
            f"${limits.max_dollars:.0f} in all by limits.max_dollars",
        ]
    )


def read_state(directory: Path) -> State | None:
    """The state of the workers on this head, or None."""
    path = directory / "state.json"
    return State.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def start_exporter(config: ClusterConfig, directory: Path, port: int) -> None:
    """Serve `wfray_cluster_*` on loopback for Prometheus, in threads that end with this process."""
    registry = CollectorRegistry()
    rate = Gauge("wfray_cluster_dollars_per_hour", "Dollars an hour of everything that runs", registry=registry)
    total = Gauge("wfray_cluster_dollars", "Dollars spent since the cluster was made", registry=registry)
    nodes = Gauge("wfray_cluster_nodes", "Machines by group and phase", ["group", "phase"], registry=registry)
    start_http_server(port, addr="127.0.0.1", registry=registry)
    machine = config.head or config.pod
    assert machine is not None
    began, head = time.time(), node_price(config, machine).dollars_per_hour

    def refresh() -> None:
        while True:
            state = read_state(directory) or State(head_since=began)
            rate.set(head + state.dollars_per_hour)
            total.set(state.spent(head, time.time()))
            nodes.clear()
            for node in state.nodes.values():
                nodes.labels(node.group, node.phase).inc(node.num_nodes)
            time.sleep(REFRESH_SECONDS)

    threading.Thread(target=refresh, name="costs", daemon=True).start()
