"""Configuration of the teacher application."""

import hashlib
import json
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config, Precision, RunPath
from wfray.config.model import ModelSource
from wfray.config.scaling import Autoscaling

Wire = Literal["hidden", "layers", "qkv", "topk", "sampled", "logits"]
EngineName = Literal["transformers", "vllm", "sglang"]

ENGINE_WIRES: dict[EngineName, tuple[Wire, ...]] = {
    "transformers": ("hidden", "layers", "qkv", "topk", "sampled", "logits"),
    "vllm": ("hidden", "topk", "sampled", "logits"),
    "sglang": ("hidden", "topk", "sampled", "logits"),
}
"""What each engine can give: a server of its own hands out the last hidden state, from which logits and what is cut from them follow."""
RECORD = "teacher.json"
"""Who taught a stage, in its directory."""


class SignalCache(Config):
    """Answers kept on disk or in object storage, row by row."""

    path: str
    """A directory or a URL that fsspec knows, such as s3://bucket/signals; shared by all replicas."""
    max_gb: PositiveFloat
    """When it is full, what was not used for the longest time goes."""


class HttpAccess(Config):
    """HTTP for clients outside Ray, at /<application>/ of the cluster's proxy."""

    token_file: str
    """A file with the token that clients send as `Authorization: Bearer <token>`; it is read where the job runs."""
    max_body_mb: PositiveFloat = 16.0
    """Larger requests are refused."""


class TeacherConfig(Config):
    """`jobs.teacher`: deploys one full-precision model as a Ray Serve application that any number of students share."""

    application: str = Field("teacher", pattern=r"^[A-Za-z0-9_-]+$")
    """The name under which students find it."""
    model: ModelSource
    models: RunPath = "runs/models"
    """Where full-precision models are kept, each under the hash of its source."""
    engine: EngineName = "transformers"
    python: str | None = None
    """The Python interpreter of the environment that holds vllm or sglang; see docs/teacher.md."""
    engine_arguments: list[str] = []
    """Further command-line arguments for the server of vllm or sglang."""
    wires: list[Wire] = Field(["hidden"], min_length=1)
    """What students may count on: tried once when a replica starts. Others are answered too where the engine has them."""
    dtype: Precision = "auto"
    num_replicas: PositiveInt | Autoscaling = 1
    num_cpus: NonNegativeFloat = 0.5
    """CPUs that a replica reserves in Ray."""
    num_gpus: NonNegativeFloat | None = None
    """None: one where the cluster has GPUs for teachers, else none."""
    resources: dict[str, PositiveFloat] = {}
    """Custom resources that a replica reserves besides its role's, to keep it to certain nodes."""
    threads: PositiveInt | None = None
    """CPU threads of a replica; None leaves it to torch."""
    batch_tokens: PositiveInt | None = None
    """Tokens of one forward pass at most: requests that wait together share one, longer ones are cut. None: one pass a request,
    so that the bits of an answer depend on nothing but the request."""
    max_queued_requests: PositiveInt = 64
    """Requests that a replica holds; beyond these, callers are told to wait."""
    cache: SignalCache | None = None
    http: HttpAccess | None = None
    """None: nobody outside Ray is answered."""
    start_timeout_seconds: PositiveFloat = 300.0
    """How long replicas may take to be scheduled and to load the model."""

    @property
    def source_sha256(self) -> str:
        """Of what decides which function the teacher computes; a plan can compare it without a cluster."""
        function = [self.model.digest(), self.engine, self.engine_arguments, self.dtype]
        return hashlib.sha256(json.dumps(function).encode()).hexdigest()

    @model_validator(mode="after")
    def check(self) -> Self:
        if missing := [wire for wire in self.wires if wire not in ENGINE_WIRES[self.engine]]:
            raise ValueError(
                f"engine {self.engine} cannot give {', '.join(missing)}, only {', '.join(ENGINE_WIRES[self.engine])}: "
                "take those out of wires, or set engine=transformers"
            )
        if self.engine == "transformers" and self.python is not None:
            raise ValueError("python belongs to the engines vllm and sglang: remove it")
        if self.engine != "transformers" and self.python is None:
            raise ValueError(
                f"engine {self.engine} needs python=..., the interpreter of the environment that holds it; see docs/teacher.md"
            )
        if self.engine_arguments and self.engine == "transformers":
            raise ValueError("engine_arguments belong to the engines vllm and sglang: remove them")
        return self
