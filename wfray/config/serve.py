"""Configuration of the OpenAI-compatible application: which models it serves under which names, and where it listens."""

from typing import Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config, StageConfig


class ServedModel(Config):
    """One model, by the name that requests use."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    file: str = "export"
    """An export stage of this run (its model.gguf), a file in the run such as export/original.gguf, or the path of a GGUF file."""
    context: PositiveInt = 2048
    """Prompt and answer together, tokens."""
    threads: PositiveInt = 2
    """CPU threads."""


class Probes(Config):
    """Questions that the job asks through HTTP once the application answers; the answers are kept in samples.json."""

    prompts: list[str] = []
    """Each is one user message, put to every model."""
    max_tokens: PositiveInt = 48
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token each time."""
    seed: NonNegativeInt = 0


class ServeConfig(StageConfig):
    """`jobs.serve`: deploys an OpenAI-compatible Ray Serve application that outlives the job."""

    stage: str = "serve"
    """This stage's directory in the run."""
    application: str = Field("wrinklefree", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """The application's name on the cluster, and its path: http://127.0.0.1:<port>/<application>/v1."""
    models: list[ServedModel] = Field(min_length=1)
    num_replicas: PositiveInt = 1
    num_cpus: NonNegativeFloat = 0.1
    """CPUs that a replica reserves in Ray."""
    max_ongoing_requests: PositiveInt = 32
    """Requests in a replica; each model answers one at a time, the others wait in order."""
    start_timeout_seconds: PositiveFloat = 120.0
    probes: Probes = Probes()

    @property
    def parents(self) -> dict[str, str]:
        """The file or export stage of every model."""
        return {model.name: model.file for model in self.models}

    @model_validator(mode="after")
    def check(self) -> Self:
        names = [model.name for model in self.models]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"models share the name {', '.join(repeated)}")
        return self
