"""The trainer's role: Ray Train starts the student's workers and replaces those that crash.

A new group goes on from the newest committed checkpoint in the stage's directory, which needs nothing of Ray's own bookkeeping,
so that a new job resumes in the same way. Ray Train does not resume data mid-epoch; our stream's cursor in the checkpoint does.
What trains (`actors.student`, with transformers) is imported by the workers alone: the job that starts them is up in half the time.
"""

import os
from pathlib import Path
from typing import Any, cast

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from wfray.config.train import TrainConfig
from wfray.runs.files import remove


def train_student(config: TrainConfig, directory: Path, student: Path, corpus: Path) -> None:
    """Run a training stage to its end: `directory/student` is the trained student.

    Args:
        config: the stage.
        directory: the stage's directory, shared by all nodes.
        student: the student directory to go on from.
        corpus: the packed corpus directory.

    Raises:
        ValueError: something that the user can mend.
    """
    task = {"config": config.model_dump(mode="json"), "directory": str(directory), "student": str(student), "corpus": str(corpus)}
    trainer = TorchTrainer(
        cast(Any, train_worker),
        train_loop_config=task,
        torch_config=TorchConfig(backend="nccl" if torch.cuda.is_available() else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.train.num_workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            name=f"{config.stage}-{os.getpid()}",
            storage_path=str(directory / "ray"),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
        ),
    )
    mistake = trainer.fit().return_value  # type: ignore[attr-defined]
    remove(directory / "ray")
    if mistake:
        raise ValueError(mistake)


def train_worker(task: dict[str, Any]) -> str | None:
    """One worker. A user's mistake is returned, not raised: Ray would take it for a crash and start the worker again."""
    from actors.student import run_worker

    try:
        run_worker(TrainConfig.model_validate(task["config"]), Path(task["directory"]), Path(task["student"]), Path(task["corpus"]))
    except (ValueError, FloatingPointError) as error:
        return str(error)
    return None
