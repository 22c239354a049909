"""The head of a cloud cluster, or a whole pod: what SkyPilot's job runs there (`python -m cluster.head`).

It keeps Ray's head running for `WF_HOURS`: a Ray that ends is started again, finds the state of its workers on disk, and they join it
again. The dashboard, Serve and the exporter of costs listen on loopback: the way in is an SSH tunnel.
"""

import json
import os
from pathlib import Path

import yaml

from cluster.autoscaling import HEAD, autoscaling_config
from cluster.costs import start_exporter
from cluster.identity import Owner, home
from cluster.monitoring import COSTS_PORT, start_monitoring
from cluster.nodes import ENDING
from cluster.rays import keep_running, only_one
from cluster.storage import keep_mirrored, print_outcome
from cluster.tasks import AGENT_PORT, DASHBOARD_PORT, GCS_PORT, SERVE_PORT
from wfray.config.cluster import ClusterConfig
from wfray.runs import write_aside

DEFAULT_PORTS = {"GCS": GCS_PORT, "DASHBOARD": DASHBOARD_PORT, "AGENT": AGENT_PORT, "SERVE": SERVE_PORT, "COSTS": COSTS_PORT}


def main() -> None:
    """Start, and stay; a `wf down` that was broken off is taken back, since somebody asks for the cluster again."""
    directory = home() / "head"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ENDING).unlink(missing_ok=True)
    lock = only_one(home() / "head.lock")
    config = ClusterConfig.parse(json.loads(os.environ["WF_CLUSTER"]), "WF_CLUSTER")
    ports = {name: int(os.environ.get(f"WF_{name}_PORT", default)) for name, default in DEFAULT_PORTS.items()}
    command = ray_command(config, ports)
    if config.head:
        command.append(f"--autoscaling-config={write_autoscaling(config, directory, ports['GCS'])}")
    mirror = keep_mirrored(Path(os.environ["WFRAY_HOME"]), config.storage) if config.storage else None
    start_exporter(config, directory, ports["COSTS"])
    if config.monitoring:
        start_monitoring(directory / "monitoring", ports["COSTS"])
    with lock:
        keep_running(command, ray_environment(ports), float(os.environ["WF_HOURS"]) * 3600)
    if mirror:
        print_outcome(mirror)


def ray_command(config: ClusterConfig, ports: dict[str, int]) -> list[str]:
    """Arguments of `ray`."""
    machine = config.head or config.pod
    assert machine is not None
    command = ["start", "--head", "--block", f"--node-ip-address={node_address()}", f"--port={ports['GCS']}", "--include-dashboard=true"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={ports['DASHBOARD']}", f"--dashboard-agent-listen-port={ports['AGENT']}"]
    command += [f"--num-cpus={machine.cpus}"]
    return command + ([f"--object-store-memory={int(machine.object_store_gb * 2**30)}"] if machine.object_store_gb else [])


def ray_environment(ports: dict[str, int]) -> dict[str, str]:
    """Of Ray's processes: the autoscaler's version, and how it knows the head."""
    return {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_NODE_TYPE_NAME": HEAD,
        "WFRAY_HTTP_PORT": str(ports["SERVE"]),
        "PYTHONPATH": os.getcwd(),
    }


def write_autoscaling(config: ClusterConfig, directory: Path, gcs_port: int) -> Path:
    """The autoscaler's configuration, in the directory of its state."""
    owner = Owner.model_validate_json(os.environ["WF_OWNER"])
    tree = autoscaling_config(config, owner, directory, f"{node_address()}:{gcs_port}", Path.cwd())
    with write_aside(directory / "autoscaling.yaml") as aside:
        aside.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return directory / "autoscaling.yaml"


def node_address() -> str:
    """Of this machine within its network, as SkyPilot tells it."""
    return os.environ["SKYPILOT_NODE_IPS"].split()[int(os.environ.get("SKYPILOT_NODE_RANK", "0"))]


if __name__ == "__main__":
    main()
