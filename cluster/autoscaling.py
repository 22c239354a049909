"""The configuration of Ray's autoscaler: one node type a group, each with its role's resource and its own idle time-out."""

from pathlib import Path
from typing import Any

from cluster.identity import Owner
from cluster.tasks import ROLE_CAPACITY, head_name
from wfray.config.cluster import ClusterConfig, Group, Role

HEAD = "head"
"""Node type and instance id of the head."""
EMPTY_LISTS = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
"""Ray fills these in for `ray up` alone, and misses them otherwise."""


def autoscaling_config(config: ClusterConfig, owner: Owner, directory: Path, head_address: str, workdir: Path) -> dict[str, Any]:
    """What `ray start --autoscaling-config` reads.

    Args:
        config: the cluster.
        owner: on whose behalf workers are launched.
        directory: for the state of the workers, on the head's disk.
        head_address: `host:port` that workers join.
        workdir: the code that workers get.
    """
    provider = {
        "type": "external",
        "module": "cluster.provider.SkyNodeProvider",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "cluster": config.model_dump(mode="json", exclude_none=True),
        "owner": owner.model_dump(),
        "directory": str(directory),
        "head_address": head_address,
        "workdir": str(workdir),
    }
    assert config.head is not None
    types: dict[str, Any] = {HEAD: {"resources": {"CPU": config.head.cpus}, "node_config": {}, "min_workers": 0, "max_workers": 0}}
    types |= {name: node_type(group) for name, group in config.groups.items()}
    return {
        "cluster_name": head_name(config),
        "max_workers": config.limits.max_nodes,
        "upscaling_speed": float(config.limits.max_nodes),
        "idle_timeout_minutes": max((group.idle_minutes for group in config.groups.values()), default=5),
        "provider": provider,
        "auth": {},
        "docker": {},
        "available_node_types": types,
        "head_node_type": HEAD,
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in EMPTY_LISTS},
    }


def node_type(group: Group) -> dict[str, Any]:
    """A group as Ray knows it."""
    return {
        "resources": node_resources(group.role, group.cpus, group.gpus),
        "node_config": {},
        "min_workers": group.min_nodes,
        "max_workers": group.max_nodes,
        "idle_timeout_s": group.idle_minutes * 60,
    }


def node_resources(role: Role, cpus: int, gpus: int) -> dict[str, float]:
    """What one node offers."""
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), role: ROLE_CAPACITY}
