"""The cloud takes a spot machine back: notice it on the machine, and tell Ray, which drains the node and warns the student.

A notice is a file, `~/wfray-notice`: SkyPilot's preemption hook touches it, and so does a systemd unit that the machine's shutdown
stops first (see `cluster.tasks`); whatever else learns of a reclaim may do the same. Ray's own watcher asks every few seconds which nodes
are being drained; the student then writes a checkpoint at its next step.
"""

import os
import subprocess
import threading
import time
from pathlib import Path

from ray._raylet import GcsClient  # type: ignore[attr-defined]

from cluster.rays import RAY

POLL_SECONDS = 1.0
DEADLINE_SECONDS = 50
"""What Nebius grants is about a minute; RunPod grants seconds."""


def notice_file() -> Path:
    """`WF_NOTICE`, else `~/wfray-notice`."""
    return Path(os.environ.get("WF_NOTICE") or Path.home() / "wfray-notice")


def watch_for_reclaim(head: str, identity: str) -> threading.Thread:
    """Watch in a thread; when the notice comes, drain the node `identity` of the cluster at `head` (`host:port`)."""
    notice_file().unlink(missing_ok=True)

    def watch() -> None:
        while not notice_file().exists():
            time.sleep(POLL_SECONDS)
        print(f"the cloud takes this machine back: draining {identity}", flush=True)
        drain(head, identity)

    thread = threading.Thread(target=watch, name="reclaim", daemon=True)
    thread.start()
    return thread


def drain(head: str, identity: str) -> None:
    """Tell Ray that every node of this instance id will be gone soon."""
    for node_id in ray_nodes(head, identity):
        command = [*RAY, "drain-node", f"--address={head}", f"--node-id={node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message=the cloud takes this machine back", f"--deadline-remaining-seconds={DEADLINE_SECONDS}"]
        subprocess.run(command, check=True)


def ray_nodes(head: str, identity: str) -> list[str]:
    """Ids (hex) of the living Ray nodes of an instance id."""
    nodes = GcsClient(address=head).get_all_node_info()
    return [node_id.hex() for node_id, info in nodes.items() if info.instance_id == identity and info.state == info.GcsNodeState.ALIVE]
