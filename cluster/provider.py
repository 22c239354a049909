"""Ray's autoscaler asks, SkyPilot launches: a `NodeProvider` over `cluster.nodes`, for version 2 of the autoscaler.

It runs in the autoscaler's own process on the head. A node of Ray and a machine of SkyPilot know each other by the instance id
`<SkyPilot cluster>/<rank>`, which `cluster.worker` gives to Ray as `RAY_CLOUD_INSTANCE_ID`. The autoscaler drains a node before it
lets it go.
"""

import threading
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_LAUNCH_REQUEST,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster.autoscaling import HEAD
from cluster.identity import Owner
from cluster.nodes import Node, Nodes
from wfray.config.cluster import ClusterConfig


class SkyNodeProvider(NodeProvider):
    """See the module docstring."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self.lock = threading.Lock()
        self.nodes = Nodes(
            ClusterConfig.parse(provider_config["cluster"], "the autoscaler's configuration"),
            Owner.model_validate(provider_config["owner"]),
            Path(provider_config["directory"]),
            provider_config["head_address"],
            Path(provider_config["workdir"]),
        )
        self.seen: dict[str, tuple[Node, int]] = {}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """All machines that are there, coming or going, after a step of everything under way."""
        with self.lock:
            self.nodes.tick()
            self.seen = {
                identity: (node, rank) for node in self.nodes.live for rank, identity in enumerate(node.ids) if rank not in node.released
            }
            found = [HEAD, *self.seen]
        return [identity for identity in found if tag_filters.items() <= self.node_tags(identity).items()]

    def is_running(self, node_id: str) -> bool:
        """Whether it has been launched; Ray may yet be starting on it."""
        return node_id == HEAD or (node_id in self.seen and self.seen[node_id][0].phase == "up")

    def is_terminated(self, node_id: str) -> bool:
        """Whether it is gone or going."""
        return node_id != HEAD and node_id not in self.seen

    def node_tags(self, node_id: str) -> dict[str, str]:
        """In Ray's words."""
        if node_id == HEAD:
            return {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
        node, _ = self.seen[node_id]
        status = STATUS_UP_TO_DATE if node.phase == "up" else node.message or node.phase
        return {
            TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
            TAG_RAY_USER_NODE_TYPE: node.group,
            TAG_RAY_NODE_STATUS: status,
            TAG_RAY_LAUNCH_REQUEST: node.request,
        }

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        """Begin to launch machines; `ValueError` where a limit or a pause forbids it, which the autoscaler reports and asks again."""
        with self.lock:
            self.nodes.launch(tags[TAG_RAY_USER_NODE_TYPE], count, tags.get(TAG_RAY_LAUNCH_REQUEST, ""))

    def terminate_node(self, node_id: str) -> None:
        """Let one go."""
        with self.lock:
            self.nodes.release(node_id)

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """Let several go."""
        for node_id in node_ids:
            self.terminate_node(node_id)
