"""The stages of a pipeline: their configurations as the pipeline's file names them, and what remains to be done."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wfray.config.base import Config, StageConfig
from wfray.config.convert import ConvertConfig
from wfray.config.data import PackConfig
from wfray.config.diffuse import DiffuseConfig
from wfray.config.evaluate import EvaluateConfig
from wfray.config.export import ExportConfig
from wfray.config.pipeline import RUN, PipelineConfig, StageCall
from wfray.config.serve import ServeConfig
from wfray.config.teacher import RECORD, TeacherConfig
from wfray.config.train import TrainConfig
from wfray.runs import Manifest, Stage

CONFIGS: dict[str, type[Config]] = {
    "pack": PackConfig,
    "teacher": TeacherConfig,
    "convert": ConvertConfig,
    "align": TrainConfig,
    "pretrain": TrainConfig,
    "distill": TrainConfig,
    "diffuse": DiffuseConfig,
    "export": ExportConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
}


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a pipeline with its resolved configuration."""

    name: str
    job: str
    config: Config
    command: list[str]
    """Arguments of `python`, to be run in the repository's root."""

    @property
    def asks(self) -> str | None:
        """The teacher application that it asks."""
        return self.config.teacher.application if isinstance(self.config, TrainConfig) and self.config.teacher else None


def plan_stages(config: PipelineConfig, run: Path, root: Path) -> list[PlannedStage]:
    """Resolve every stage's configuration.

    Args:
        config: the pipeline's.
        run: the absolute run directory.
        root: the repository, under which configuration files stand.

    Raises:
        ValueError: a file is missing or not valid, two stages have one name, or there is no stage to stop after.
    """
    planned = [plan_stage(call, run, root) for call in config.stages]
    names = [stage.name for stage in planned]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"stages named {', '.join(repeated)} appear more than once: give each call its own stage name with set: {{stage: ...}}"
        )
    if config.until is None:
        return planned
    if config.until not in names:
        raise ValueError(f"until: {config.until!r} is not a stage of this pipeline; there are: {', '.join(names)}")
    return planned[: names.index(config.until) + 1]


def plan_stage(call: StageCall, run: Path, root: Path) -> PlannedStage:
    """Resolve one stage's configuration with the pipeline's run directory."""
    config_type = CONFIGS[call.job]
    values: dict[str, Any] = dict(call.set)
    values.update({name: str(run) for name in ("run",) if name in config_type.model_fields})
    values.update({name: str(run.parent / "models") for name in ("models",) if issubclass(config_type, ConvertConfig | TeacherConfig)})
    overrides = [f"{key}={to_flow(within(run, value))}" for key, value in values.items()]
    config = config_type.load(root / call.config, overrides)
    name = config.stage if isinstance(config, StageConfig) else config.application if isinstance(config, TeacherConfig) else call.job
    return PlannedStage(name, call.job, config, ["-m", f"jobs.{call.job}", "--config", call.config, *overrides])


def within(run: Path, value: Any) -> Any:
    """A value with the run directory in the place of its name."""
    if isinstance(value, dict):
        return {key: within(run, each) for key, each in value.items()}
    if isinstance(value, list):
        return [within(run, each) for each in value]
    return value.replace(RUN, str(run)) if isinstance(value, str) else value


def to_flow(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("\n...").strip()


def pending_stages(planned: list[PlannedStage], keep: bool = False) -> set[str]:
    """Names of the stages to run: those not done, and those with such a parent.

    A teacher, named by its application, runs when a pending stage asks it. With `keep`, what is served runs too, since its cluster is gone.
    """
    pending = {stage.name for stage in planned if keep and stage.job == "serve"}
    teachers = {stage.config.application: stage.config for stage in planned if isinstance(stage.config, TeacherConfig)}
    for stage in planned:
        if not isinstance(stage.config, StageConfig):
            continue
        if pending & stages_read(stage.config) or not is_done(stage.config) or has_another_teacher(stage, teachers):
            pending.add(stage.name)
    asked = {stage.asks for stage in planned if stage.name in pending}
    return pending | {stage.name for stage in planned if isinstance(stage.config, TeacherConfig) and stage.config.application in asked}


def has_another_teacher(stage: PlannedStage, teachers: dict[str, TeacherConfig]) -> bool:
    """Whether the teacher that the plan deploys is another one than the one that taught a stage."""
    teacher = teachers.get(stage.asks or "")
    record = Path(stage.config.run) / stage.config.stage / RECORD if isinstance(stage.config, StageConfig) else Path()
    if teacher is None or not record.is_file():
        return False
    recorded = json.loads(record.read_text(encoding="utf-8")).get("source_sha256")
    return bool(recorded) and recorded != teacher.source_sha256


def stages_read(config: StageConfig) -> set[str]:
    """The stages of the run that a stage may read: its parents' names, also where one is a file within a stage, or named in full."""
    run, references = Path(config.run), [Path(reference) for reference in config.parents.values()]
    within = [reference.relative_to(run) if reference.is_relative_to(run) else reference for reference in references]
    return {part for reference in within for part in reference.parts[:1]}


def is_done(config: StageConfig) -> bool:
    """Whether a stage is complete and its parents are as they were."""
    manifest = Manifest.read(Path(config.run) / config.stage)
    return manifest is not None and manifest.status == "complete" and Stage.of(config).done
