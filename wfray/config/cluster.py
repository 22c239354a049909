"""Configuration of a Ray cluster in a cloud: where it is, its head, its groups of workers, and what it may cost.

On Nebius the head is a CPU machine on demand, and workers come and go by demand, a SkyPilot cluster each. On RunPod, where pods
have no network of their own between them, one pod is the whole cluster.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from wfray.config.base import Config

Role = Literal["student", "teacher", "data", "evaluate", "serve"]
Extra = Literal["vllm", "sglang"]
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,19}$"
"""Of clusters and groups: SkyPilot takes it, and it holds no wildcard that `sky down` would expand."""
ACCELERATOR = re.compile(r"[A-Za-z0-9-]+(:[1-8])?")
PLACE = r"^[A-Za-z0-9-]+$"
"""Of regions: no slash, which would let one name another cloud."""
NO_GPU_ON_GCP = (
    "GPU machines on GCP are refused: this project's GPU work is paid for on Nebius and RunPod alone. Set provider.kind to nebius or "
    "runpod; gs:// stays allowed as storage"
)
GOOGLE = ("gcp", "google", "gce", "googlecloud", "google-cloud")


class Nebius(Config):
    """Virtual machines in one region: they share a subnet, so that Ray's nodes reach each other."""

    kind: Literal["nebius"]
    region: str = Field("eu-north1", pattern=PLACE)
    filesystem_id: str = Field(pattern=PLACE)
    """A Nebius shared filesystem of this region, in which all nodes find runs and models."""
    security_group: str = "wfray"
    """One that admits SSH and, from itself, everything: SkyPilot's own admits only the nodes of one SkyPilot cluster."""


class RunPod(Config):
    """Pods: SkyPilot joins none to another there, so one pod is one whole Ray cluster."""

    kind: Literal["runpod"]
    regions: list[Annotated[str, Field(pattern=PLACE)]] = []
    """Tried in this order; empty: all."""


Provider = Annotated[Nebius | RunPod, Field(discriminator="kind")]


class Machine(Config):
    """What every kind of node has."""

    cpus: PositiveInt
    """Cores that Ray may use; a machine has at least these."""
    memory_gb: PositiveInt | None = None
    """At least; None: whatever comes with the cores or the GPUs."""
    disk_gb: PositiveInt = 256
    object_store_gb: PositiveFloat | None = None
    """Of Ray; None: 30% of the memory."""


class Head(Machine):
    """The node that must not be lost: jobs' drivers, the autoscaler, the dashboard, Serve's proxy. On demand, without GPUs."""

    cpus: PositiveInt = 8
    max_hours: PositiveFloat = 168.0
    """Dead man's switch: after this long the head ends, and everything with it."""


class Accelerated(Machine):
    """A machine that may have GPUs."""

    accelerators: list[str] = []
    """Alternatives in order of preference, by SkyPilot's names: H100:8. Empty: a CPU machine."""
    spot: bool = False
    """Cheaper, and taken back at a minute's notice."""
    extras: list[Extra] = []
    """Engines to set up on it, each in an environment of its own."""

    @field_validator("accelerators")
    @classmethod
    def check_accelerators(cls, names: list[str]) -> list[str]:
        for name in names:
            if not ACCELERATOR.fullmatch(name):
                raise ValueError(f"accelerator {name!r} must look like H100:8, with 1 to 8 GPUs")
        if len({num_gpus(name) for name in names}) > 1:
            raise ValueError(f"alternatives must have the same number of GPUs: {', '.join(names)}")
        return names

    @property
    def gpus(self) -> int:
        """Of one node."""
        return num_gpus(self.accelerators[0]) if self.accelerators else 0


class Group(Accelerated):
    """Workers of one kind, for one role."""

    role: Role
    """Its actors ask for a custom resource of this name, so no other role's land here."""
    min_nodes: NonNegativeInt = 0
    max_nodes: PositiveInt = 1
    idle_minutes: PositiveFloat = 10.0
    """How long a node may do nothing before it is given back."""
    nodes_together: PositiveInt = 1
    """Above 1: nodes are launched this many at a time as one SkyPilot cluster with InfiniBand, which separate ones do not share."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is more than max_nodes {self.max_nodes}")
        if self.nodes_together > 1 and self.gpus != 8:
            raise ValueError(
                "nodes_together needs InfiniBand, which only machines of 8 GPUs have: set accelerators of :8, or nodes_together=1"
            )
        if self.max_nodes % self.nodes_together:
            raise ValueError(f"max_nodes {self.max_nodes} is not a multiple of nodes_together {self.nodes_together}")
        return self


class Pod(Accelerated):
    """A RunPod pod with every role in it."""

    cpus: PositiveInt = 8
    max_hours: PositiveFloat = 48.0
    """Dead man's switch, as of a head."""


class Limits(Config):
    """What the cluster may use at most."""

    max_nodes: PositiveInt = 8
    """Workers, of all groups together."""
    max_dollars_per_hour: PositiveFloat
    """Of head and workers together, by the price table; a node that would pass it is not launched."""
    max_dollars: PositiveFloat
    """Since the cluster was made; when it is spent, the workers are given back."""
    launch_attempts: PositiveInt = 4
    """How often a node is tried before its group pauses."""
    backoff_seconds: PositiveFloat = 30.0
    """Before the second attempt; it doubles each time."""
    autostop_minutes: PositiveInt = 10
    """A machine on which Ray has ended deletes itself after this long, whoever has forgotten it."""


class ClusterConfig(Config):
    """`wf up`: a Ray cluster in a cloud."""

    name: str = Field(pattern=NAME_PATTERN)
    provider: Provider
    head: Head | None = None
    """Nebius only."""
    groups: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Group] = {}
    """Nebius only."""
    pod: Pod | None = None
    """RunPod only."""
    limits: Limits
    monitoring: bool = True
    """Install Prometheus and Grafana on the head, for `wf dashboard`."""
    storage: str | None = Field(None, pattern=r"^(s3|gs)://[a-z0-9][a-z0-9._-]+(/.*)?$")
    """Where runs and models are mirrored, a URL that fsspec knows; None: nowhere. A pod's disk is gone with the pod."""
    secrets: list[Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]] = []
    """Names of environment variables that are handed over as secrets: the values are in no file, log or YAML."""

    @model_validator(mode="before")
    @classmethod
    def refuse_gcp(cls, tree: Any) -> Any:
        """Say why, before anything else is said."""
        provider = tree.get("provider") if isinstance(tree, dict) else None
        named = provider.get("kind") if isinstance(provider, dict) else provider
        if str(named).strip().lower() in GOOGLE:
            raise ValueError(NO_GPU_ON_GCP)
        return tree

    @model_validator(mode="after")
    def check(self) -> Self:
        if isinstance(self.provider, RunPod):
            if self.pod is None or self.head or self.groups:
                raise ValueError("on runpod one pod is the whole cluster: give `pod`, and neither `head` nor `groups`")
        elif self.head is None or self.pod:
            raise ValueError("on nebius give `head` and `groups`, and no `pod`")
        roles = [group.role for group in self.groups.values()]
        if repeated := sorted({role for role in roles if roles.count(role) > 1}):
            raise ValueError(f"more than one group has the role {', '.join(repeated)}: give one group several accelerators instead")
        if (least := sum(group.min_nodes for group in self.groups.values())) > self.limits.max_nodes:
            raise ValueError(f"min_nodes of the groups add up to {least}, above limits.max_nodes {self.limits.max_nodes}")
        return self

    @property
    def roles(self) -> dict[Role, int]:
        """The GPUs of a node of each role that has a group."""
        return {group.role: group.gpus for group in self.groups.values()}


def num_gpus(accelerator: str) -> int:
    """8 of H100:8, 1 of H100."""
    return int(accelerator.partition(":")[2] or 1)
