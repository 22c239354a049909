"""A worker of a cloud cluster: what SkyPilot's job runs there (`python -m cluster.worker`).

It joins the head's Ray and stays; when the head's Ray is started again, it joins again. When the head is gone for good, it ends, and with
it SkyPilot's job, and so after a while the machine.
"""

import json
import os

from cluster.autoscaling import node_resources
from cluster.head import node_address
from cluster.identity import home
from cluster.rays import keep_running, only_one
from cluster.reclaim import watch_for_reclaim
from cluster.tasks import AGENT_PORT
from wfray.config.cluster import ClusterConfig, Group

LONELY_SECONDS = 900.0
FOREVER_SECONDS = 366 * 24 * 3600.0


def main() -> None:
    """Join, and stay."""
    lock = only_one(home() / "worker.lock")
    config = ClusterConfig.parse(json.loads(os.environ["WF_CLUSTER"]), "WF_CLUSTER")
    name, head = os.environ["WF_GROUP"], os.environ["WF_HEAD"]
    identity = f"{os.environ['WF_NODE']}/{os.environ.get('SKYPILOT_NODE_RANK', '0')}"
    environment = {"RAY_CLOUD_INSTANCE_ID": identity, "RAY_NODE_TYPE_NAME": name, "PYTHONPATH": os.getcwd()}
    if config.groups[name].spot:
        watch_for_reclaim(head, identity)
    with lock:
        keep_running(ray_command(config.groups[name], head), environment, FOREVER_SECONDS, LONELY_SECONDS)


def ray_command(group: Group, head: str) -> list[str]:
    """Arguments of `ray`: what the node offers is what the autoscaler was told."""
    resources = {name: amount for name, amount in node_resources(group.role, group.cpus, group.gpus).items() if name not in ("CPU", "GPU")}
    command = ["start", f"--address={head}", "--block", f"--node-ip-address={node_address()}"]
    command += [f"--dashboard-agent-listen-port={os.environ.get('WF_AGENT_PORT', AGENT_PORT)}"]
    command += [f"--num-cpus={group.cpus}", f"--num-gpus={group.gpus}", f"--resources={json.dumps(resources)}"]
    return command + ([f"--object-store-memory={int(group.object_store_gb * 2**30)}"] if group.object_store_gb else [])


if __name__ == "__main__":
    main()
