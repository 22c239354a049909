"""The workers of a cluster: which there are, which are being launched, what they cost; on the head's disk, so that a restart forgets none.

    launching --launched--> up --told to go--> stopping --gone--> (forgotten; its cost is kept)
        └─ failed: again after a pause that doubles; after `launch_attempts` it goes, and its group pauses

Nothing here waits: `tick` looks at the `sky` commands under way and begins those that are due, so the autoscaler's loop goes on.
`sky launch` and `sky down` of a name may be repeated, so after a restart whatever was under way is begun again.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from cluster import sky, tasks
from cluster.identity import Owner, require_owner
from cluster.prices import node_price
from wfray.config.cluster import ClusterConfig
from wfray.runs import write_aside

MAX_PAUSE_SECONDS = 900.0
ENDING = "ending"
"""While this file is beside the state, workers go and none comes."""
Phase = Literal["launching", "up", "stopping"]


class Node(BaseModel):
    """One SkyPilot cluster of `num_nodes` machines."""

    name: str
    group: str
    owner: Owner
    num_nodes: int
    phase: Phase = "launching"
    request: str = ""
    """The autoscaler's, by which it knows its own."""
    began: float
    """When it was first launched, seconds since 1970."""
    attempts: int = 0
    next_attempt: float = 0.0
    dollars_per_hour: float
    released: list[int] = []
    """Ranks that are no longer wanted; it goes when all are."""
    message: str = ""
    """Of the last failure."""

    @property
    def ids(self) -> list[str]:
        """One for each machine."""
        return [f"{self.name}/{rank}" for rank in range(self.num_nodes)]


class Pause(BaseModel):
    """A group that could not be launched."""

    until: float
    failures: int
    message: str


class State(BaseModel):
    """What is kept."""

    nodes: dict[str, Node] = {}
    pauses: dict[str, Pause] = {}
    next_number: int = 1
    past_dollars: float = 0.0
    """Of nodes that are gone."""
    head_since: float
    refused: str = ""
    """Why a node that was asked for was not launched."""

    @property
    def dollars_per_hour(self) -> float:
        """Of all nodes, going ones included."""
        return sum(node.dollars_per_hour for node in self.nodes.values())

    def spent(self, head: float, now: float) -> float:
        """Dollars since the cluster was made, with a head of `head` dollars an hour."""
        nodes = sum(node.dollars_per_hour * (now - node.began) for node in self.nodes.values())
        return self.past_dollars + (nodes + head * (now - self.head_since)) / 3600


class Nodes:
    """The workers of one cluster. Not safe for several threads at once."""

    def __init__(
        self, config: ClusterConfig, owner: Owner, directory: Path, head_address: str, workdir: Path, clock: Callable[[], float] = time.time
    ) -> None:
        """Take up what `directory` remembers.

        Args:
            config: the cluster.
            owner: on whose behalf nodes are made.
            directory: for state.json, task files and logs.
            head_address: `host:port` that workers join.
            workdir: the code, sent to workers.
            clock: seconds since 1970.
        """
        self.config, self.owner, self.directory, self.head_address, self.workdir, self.clock = (
            config,
            owner,
            directory,
            head_address,
            workdir,
            clock,
        )
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        path = directory / "state.json"
        self.state = State.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else State(head_since=clock())
        self.prices = {name: node_price(config, group).dollars_per_hour for name, group in config.groups.items()}
        self.head_price = node_price(config, config.head).dollars_per_hour if config.head else 0.0

    def save(self) -> None:
        """Whole or not at all."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with write_aside(self.directory / "state.json") as aside:
            aside.write_text(self.state.model_dump_json(indent=1), encoding="utf-8")

    @property
    def live(self) -> list[Node]:
        """Those that are wanted."""
        return [node for node in self.state.nodes.values() if node.phase != "stopping"]

    @property
    def dollars(self) -> float:
        """Spent since the cluster was made."""
        return self.state.spent(self.head_price, self.clock())

    def launch(self, group: str, count: int, request: str) -> list[str]:
        """Begin to launch `count` more machines of a group; the names of their SkyPilot clusters.

        Raises:
            ValueError: a limit forbids it, or the group pauses.
        """
        together = self.config.groups[group].nodes_together
        names = []
        for _ in range(-(-count // together)):
            self.require_allowed(group, together)
            name = f"{tasks.head_name(self.config)}-{group}-{self.state.next_number}"
            self.state.next_number += 1
            price = self.prices[group] * together
            node = Node(
                name=name, group=group, owner=self.owner, num_nodes=together, request=request, began=self.clock(), dollars_per_hour=price
            )
            self.state.nodes[name] = node
            names.append(name)
        self.state.refused = ""
        self.save()
        self.tick()
        return names

    def require_allowed(self, group: str, count: int) -> None:
        """Raise `ValueError`, and remember why, when `count` more machines of a group are too many."""
        try:
            self.check_limits(group, count)
        except ValueError as error:
            self.state.refused = str(error)
            self.save()
            raise

    def check_limits(self, group: str, count: int) -> None:
        """Raise `ValueError` when `count` more machines of a group are too many."""
        limits, pause, now = self.config.limits, self.state.pauses.get(group), self.clock()
        if pause and now < pause.until:
            raise ValueError(f"group {group} pauses for {pause.until - now:.0f} s after {pause.failures} failures: {pause.message}")
        if (total := sum(node.num_nodes for node in self.state.nodes.values()) + count) > limits.max_nodes:
            raise ValueError(f"a node of group {group} would be number {total}, above limits.max_nodes {limits.max_nodes}")
        rate = self.head_price + self.state.dollars_per_hour + self.prices[group] * count
        if rate > limits.max_dollars_per_hour:
            raise ValueError(
                f"with a node of group {group} it is ${rate:.2f}/h, above limits.max_dollars_per_hour {limits.max_dollars_per_hour}"
            )
        if reason := self.why_end():
            raise ValueError(f"{reason}: nothing more is launched")

    def release(self, identity: str) -> None:
        """A machine is no longer wanted; its SkyPilot cluster goes when none of its machines is.

        Raises:
            ValueError: it is not this cluster's, or somebody else's.
        """
        name, _, rank = identity.rpartition("/")
        node = self.state.nodes.get(name)
        if node is None:
            raise ValueError(f"{identity!r} is no node of cluster {self.config.name!r}: it is left alone")
        require_owner(node.owner, f"node {identity!r}", "take it down", acting=self.owner)
        node.released = sorted({*node.released, int(rank)})
        if len(node.released) == node.num_nodes:
            self.stop(node)
        self.save()
        self.tick()

    def stop(self, node: Node) -> None:
        """Begin to take a node down."""
        node.phase, node.attempts, node.next_attempt = "stopping", 0, 0.0
        if launch := self.running.pop(node.name, None):
            launch.terminate()
            launch.wait()

    def tick(self) -> None:
        """Look at what is under way, begin what is due, and end everything when the money is spent."""
        if self.live and (reason := self.why_end()):
            self.state.refused = f"{reason}: all workers go"
            for node in self.live:
                self.stop(node)
        for node in list(self.state.nodes.values()):
            self.advance(node)
        self.save()

    def why_end(self) -> str | None:
        """Why there are to be no workers at all, or None."""
        if (self.directory / ENDING).exists():
            return "the cluster is being taken down"
        if self.dollars >= self.config.limits.max_dollars:
            return f"${self.dollars:.2f} are spent, limits.max_dollars is {self.config.limits.max_dollars}"
        return None

    def advance(self, node: Node) -> None:
        """One step of one node."""
        process = self.running.get(node.name)
        if process is None:
            if node.phase != "up" and self.clock() >= node.next_attempt:
                self.running[node.name] = sky.start(self.command(node), self.log(node.name), cwd=self.workdir)
        elif process.poll() is not None:
            del self.running[node.name]
            (self.succeeded if process.returncode == 0 else self.failed)(node)

    def command(self, node: Node) -> list[str]:
        """What brings a node to where it is going."""
        require_owner(node.owner, f"node {node.name!r}", "touch it", acting=self.owner)
        if node.phase == "stopping":
            return sky.down_command(node.name)
        task = tasks.worker_task(self.config, self.owner, node.group, node.name)
        path = sky.write_task(self.directory / "tasks" / f"{node.name}.yaml", task)
        return sky.launch_command(node.name, path, self.sky_config(), {"WF_HEAD": self.head_address}, list(task["secrets"]))

    def sky_config(self) -> Path | None:
        """SkyPilot's configuration for this cluster as a file, if it needs any."""
        config = tasks.sky_config(self.config)
        return sky.write_yaml(self.directory / "sky.yaml", config) if config else None

    def succeeded(self, node: Node) -> None:
        """A command of a node is done."""
        if node.phase == "launching":
            node.phase, node.attempts, node.message = "up", 0, ""
            self.state.pauses.pop(node.group, None)
            return
        self.state.past_dollars += node.dollars_per_hour * (self.clock() - node.began) / 3600
        del self.state.nodes[node.name]

    def failed(self, node: Node) -> None:
        """A command of a node failed: try again later; give up a launch after some attempts, but never a node that must go."""
        limits = self.config.limits
        node.attempts += 1
        node.message = sky.explain(self.command(node), self.log(node.name).read_text(encoding="utf-8", errors="replace")[-20_000:])
        node.next_attempt = self.clock() + min(limits.backoff_seconds * 2 ** (node.attempts - 1), MAX_PAUSE_SECONDS)
        if node.phase == "launching" and node.attempts >= limits.launch_attempts:
            failures = self.state.pauses[node.group].failures + 1 if node.group in self.state.pauses else 1
            pause = min(limits.backoff_seconds * 2 ** (limits.launch_attempts + failures - 1), MAX_PAUSE_SECONDS)
            self.state.pauses[node.group] = Pause(until=self.clock() + pause, failures=failures, message=node.message)
            self.stop(node)

    def log(self, name: str) -> Path:
        """Of the commands of a node."""
        return self.directory / "logs" / f"{name}.log"
