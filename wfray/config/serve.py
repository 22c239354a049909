"""Configuration of the OpenAI-compatible application: which models it serves under which names, how, and to whom."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wfray.config.base import Config, StageConfig
from wfray.config.scaling import Autoscaling

ServingEngineName = Literal["llama_cpp", "transformers", "diffusion", "vllm", "sglang", "bitnet_cpp"]
IN_OTHER_ENVIRONMENTS = ("vllm", "sglang")
SERVERS = (*IN_OTHER_ENVIRONMENTS, "bitnet_cpp")
"""Engines that are servers by themselves; the others run in a process of ours."""


class ServedModel(Config):
    """One model, by the name that requests use."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    engine: ServingEngineName = "llama_cpp"
    file: str = "export"
    """An export stage of this run (its model.gguf), a file or directory in the run such as export/original.gguf, or a path. The engines
    transformers, vllm and sglang take a Hugging Face directory, diffusion a stage that made a block-diffusion student or its directory, the
    others a GGUF file."""
    context: PositiveInt = 2048
    """Prompt and answer together, tokens."""
    slots: PositiveInt = 4
    """Answers that are made at once; each has memory for `context` tokens."""
    threads: PositiveInt = 2
    """CPU threads."""
    trust_remote_code: bool = False
    """Whether the engine transformers may run the code in the directory: exports of families other than Llama's hold their own."""
    python: str | None = None
    """The Python interpreter of the environment that holds vllm or sglang."""
    binaries: str | None = None
    """The folder with bitnet.cpp's llama-server."""
    engine_arguments: list[str] = []
    """Further command-line arguments for the server of vllm, sglang or bitnet_cpp."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if (self.python is not None) != (self.engine in IN_OTHER_ENVIRONMENTS):
            raise ValueError("python=... is the interpreter of the environment of vllm or sglang: these need it, other engines take none")
        if (self.binaries is not None) != (self.engine == "bitnet_cpp"):
            raise ValueError("binaries=... is the folder with bitnet.cpp's llama-server: bitnet_cpp needs it, other engines take none")
        if self.trust_remote_code and self.engine != "transformers":
            raise ValueError("trust_remote_code belongs to the engine transformers: remove it, or give vllm and sglang engine_arguments")
        if self.engine_arguments and self.engine not in SERVERS:
            raise ValueError(f"engine_arguments belong to the engines {', '.join(SERVERS)}: remove them")
        return self


class Probes(Config):
    """Questions that the job asks through HTTP once the application answers; the answers are kept in samples.json."""

    prompts: list[str] = []
    """Each is one user message, put to every model."""
    system: str | None = None
    """The system message before each; None leaves it to the model's chat template."""
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
    num_replicas: PositiveInt | Autoscaling = 1
    """Each replica runs every model."""
    num_cpus: NonNegativeFloat = 0.1
    """CPUs that a replica reserves in Ray."""
    num_gpus: NonNegativeFloat = 0.0
    max_queued: NonNegativeInt = 32
    """Requests that may wait for a model of a replica beside those in its slots; more are answered 429 with Retry-After."""
    deadline_seconds: PositiveFloat = 600.0
    """From a request's arrival to the end of its answer; later ones are ended with an error."""
    flush_seconds: NonNegativeFloat = 0.05
    """Pieces of a stream that come within this time, times the answers under way, but within 0.25 s at most, are sent as one: a stream is
    smooth where it is alone, and many together cost no more. The first and the last piece are never held."""
    stall_seconds: PositiveFloat = 300.0
    """An engine that owes a word for so long is killed and started again."""
    drain_seconds: PositiveFloat = 120.0
    """How long a replica or a model that is being replaced may finish what it has begun."""
    api_keys_file: str | None = None
    """A file with one key a line, read where the job runs; clients send one as `Authorization: Bearer <key>`. None lets everybody in."""
    max_body_mb: PositiveFloat = 4.0
    """Longer requests are refused."""
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
