"""Configuration of the pipeline: which stages run, in which order, on which cluster."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config, RunPath

RUN = "{run}"


class LocalClusterConfig(Config):
    """A Ray cluster of the pipeline's own on this machine."""

    num_cpus: PositiveInt = 2
    object_store_gb: PositiveFloat = 1.0
    auth_mode: Literal["disabled", "token"] = "disabled"
    """Everything listens on loopback; `token` shuts out this machine's other users as well."""
    port: NonNegativeInt = 0
    """Of Ray's control service; 0 finds a free one."""
    dashboard_port: NonNegativeInt = 0
    http_port: NonNegativeInt = 0
    """Of Ray Serve."""


class StageCall(Config):
    """One stage: which job, with which configuration."""

    job: Literal["pack", "teacher", "convert", "align", "pretrain", "distill", "diffuse", "export", "evaluate", "serve"]
    config: str
    """YAML file, relative to the repository."""
    set: dict[str, Any] = {}
    """Overrides by dotted key; `{run}` in a value stands for the run directory."""


class PipelineConfig(Config):
    """`jobs.pipeline`: runs stages in order as Ray jobs and resumes at the first that is not done."""

    run: RunPath
    """The run directory, given to every stage."""
    cluster: LocalClusterConfig | None = LocalClusterConfig()
    """null: submit to the cluster whose dashboard is at `address`."""
    address: str | None = None
    """Dashboard URL of a running cluster."""
    stages: list[StageCall] = Field(min_length=1)
    until: str | None = None
    """Name of the stage to stop after; null: all."""
    max_memory_gb: PositiveFloat = 12.0
    """Resident memory that the run is meant to stay within; what it took is printed beside it."""
    max_minutes: PositiveFloat = 15.0
    """Wall time that the run is meant to stay within."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if (self.cluster is None) == (self.address is None):
            raise ValueError("give either `cluster` (one of the pipeline's own) or `address` (a running one)")
        return self
