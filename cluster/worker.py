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
from wfray.config.cluster import ClusterConfig

LONELY_SECONDS = 900.0
FOREVER_SECONDS = 366 * 24 * 3600.0


def main() -> None:
    """Join, and stay."""
    lock = only_one(home() / "worker.lock")
    config = ClusterConfig.parse(json.loads(os.environ["WF_CLUSTER"]), "WF_CLUSTER")
    group, rank = config.groups[os.environ["WF_GROUP"]], os.environ.get("SKYPILOT_NODE_RANK", "0")
    identity = f"{os.environ['WF_NODE']}/{rank}"
    environment = {"RAY_CLOUD_INSTANCE_ID": identity, "RAY_NODE_TYPE_NAME": os.environ["WF_GROUP"], "PYTHONPATH": os.getcwd()}
    command = ["start", f"--address={os.environ['WF_HEAD']}", "--block", f"--node-ip-address={node_address()}", f"--num-cpus={group.cpus}"]
    command += [f"--dashboard-agent-listen-port={os.environ.get('WF_AGENT_PORT', AGENT_PORT)}"]
    resources = {name: amount for name, amount in node_resources(group.role, group.cpus, group.gpus).items() if name not in ("CPU", "GPU")}
    command += [f"--num-gpus={group.gpus}", f"--resources={json.dumps(resources)}"]
    command += [f"--object-store-memory={int(group.object_store_gb * 2**30)}"] if group.object_store_gb else []
    if group.spot:
        watch_for_reclaim(os.environ["WF_HEAD"], identity)
    lonely = float(os.environ.get("WF_LONELY_SECONDS", LONELY_SECONDS))
    with lock:
        keep_running(command, environment, FOREVER_SECONDS, lonely)


if __name__ == "__main__":
    main()
