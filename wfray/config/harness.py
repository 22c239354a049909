"""Configuration of lm-eval within an evaluation: which tasks, on how many actors, and which subjects to compare."""

from typing import Annotated, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from wfray.config.base import Config, Location

GENERAL = ["arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "boolq", "openbookqa", "lambada_openai", "wikitext"]
BITDISTILL = ["mnli", "qnli", "sst2", "cnn_dailymail_rouge"]
OFFLINE = ["arc_challenge", "piqa", "winogrande", "hellaswag", "boolq", "openbookqa", "truthfulqa", "movie_reviews"]
PRESETS: dict[str, list[str]] = {
    "smoke": ["offline_arc_challenge", "offline_winogrande", "offline_openbookqa"],
    "offline": [f"offline_{name}" for name in OFFLINE],
    "bitdistill": BITDISTILL,
    "glue": ["glue"],
    "general": GENERAL,
    "full": [*GENERAL, *BITDISTILL, "glue", "truthfulqa_mc2", "mmlu", "gsm8k", "ifeval"],
}
"""Names of lm-eval tasks. `offline` and `smoke` read sets that packages ship (`wfray.evals.sets`), all others the Hugging Face Hub."""
SMOKE_LIMIT = 40
Preset = Literal["smoke", "offline", "bitdistill", "glue", "general", "full"]


class Harness(Config):
    """Runs EleutherAI's lm-eval on every subject, its requests divided over actors."""

    preset: Preset | None = None
    tasks: list[str] = []
    """Names of tasks, groups or tags besides those of the preset."""
    include: list[str] = []
    """Folders of more lm-eval task files, absolute paths."""
    limit: PositiveInt | None = None
    """First items of each task; None: all, 40 in the preset `smoke`."""
    num_fewshot: NonNegativeInt | None = None
    """None leaves it to each task."""
    chat_template: bool = False
    """Ask in the model's chat template."""
    system_instruction: str | None = None
    bootstrap_iterations: PositiveInt = 100_000
    """For standard errors that have no formula, lm-eval's own default."""
    batch_size: PositiveInt = 8
    """Requests of one forward pass; scores of float products depend on it in their last digits, as everywhere."""
    slice_requests: PositiveInt = 256
    """About how many requests an actor answers at a time: the unit of parallel work and of what a killed job redoes."""
    compare: list[tuple[str, str]] = []
    """Pairs of subjects, reference first, that are compared item by item."""
    num_actors: Annotated[PositiveInt, Location()] = 1
    """Each holds the subject's model."""
    num_cpus: Annotated[NonNegativeFloat, Location()] = 0.5
    """CPUs that an actor reserves in Ray; a GPU each, where the cluster has one."""
    fetch: Annotated[bool, Location()] = False
    """Download the packages that hold the offline sets, where the cache has none."""

    @property
    def task_names(self) -> list[str]:
        """The preset's tasks and the others, each once."""
        return list(dict.fromkeys([*(PRESETS[self.preset] if self.preset else []), *self.tasks]))

    @property
    def item_limit(self) -> int | None:
        """`limit` or the preset's."""
        return SMOKE_LIMIT if self.limit is None and self.preset == "smoke" else self.limit

    @model_validator(mode="after")
    def check(self) -> Self:
        if not self.task_names:
            raise ValueError(f"harness names no tasks: give `tasks`, or a preset: {', '.join(PRESETS)}")
        return self
