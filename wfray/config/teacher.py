"""Configuration of the teacher application."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from wfray.config.base import Config, RunPath
from wfray.config.model import ModelSource


class TeacherConfig(Config):
    """`jobs.teacher`: deploys one full-precision model as a Ray Serve application that any number of students share."""

    application: str = "teacher"
    """The name under which students find it."""
    model: ModelSource
    models: RunPath = "runs/models"
    """Where full-precision models are kept, each under the hash of its source."""
    engine: Literal["transformers"] = "transformers"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    num_replicas: PositiveInt = 1
    num_cpus: NonNegativeFloat = 0.5
    """CPUs that a replica reserves in Ray."""
    num_gpus: NonNegativeFloat = 0.0
    threads: PositiveInt | None = None
    """CPU threads of a replica; None leaves it to torch."""
    max_queued_requests: PositiveInt = 64
    """Beyond these, callers are told to wait."""
    start_timeout_seconds: PositiveFloat = 300.0
