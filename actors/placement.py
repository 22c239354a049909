"""Which nodes a role's actors may use: on a cluster of worker groups those of its own group, elsewhere any.

The nodes of a group carry a custom resource named after its role, and every process of such a cluster is told the roles, with the
GPUs of one node each, in `WFRAY_ROLES` (see `cluster.tasks`). An actor that asks for its role's resource makes the autoscaler add a node of
that group, and leaves the nodes of the others alone. Without the variable, as on a laptop or a pod, nothing is asked for.
"""

import json
import os

import ray

from wfray.config.cluster import Role


def roles() -> dict[str, int]:
    """The roles that have nodes of their own on this cluster, with the GPUs of one node."""
    return json.loads(os.environ.get("WFRAY_ROLES") or "{}")


def resources_of(role: Role) -> dict[str, float]:
    """What an actor of a role asks for besides cores and GPUs."""
    return {role: 1} if role in roles() else {}


def gpus_for(role: Role) -> int:
    """GPUs that a role's actors may have: of a node of its group, else of all of the cluster as it stands."""
    known = roles()
    return known[role] if role in known else int(ray.cluster_resources().get("GPU", 0))
