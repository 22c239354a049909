"""The student's role: Ray Train runs the training loop of stages 1.9, 2, 3 and of block diffusion on one or more workers.

When a worker crashes, Ray starts the whole group again, with another number of workers where that is elastic and the cluster has
changed. It goes on from the newest committed checkpoint in the stage's directory, which needs nothing of Ray's own bookkeeping, so
that a new job resumes in the same way. Ray Train does not resume data mid-epoch; our stream's cursor in the checkpoint does.

Ray cannot tell a user's mistake from a crash and starts the group again for both. A worker therefore leaves its mistake in a file, which
the next group finds: it ends at once, and the job with it, with that one message.

The job and Ray's controller import this file, the workers `student_worker`, which takes seconds.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context, get_preemption_info
from ray.train.torch import TorchConfig, TorchTrainer

from actors.placement import gpus_for, resources_of
from wfray.config.train import TrainConfig
from wfray.data.corpus import PackedCorpus
from wfray.runs.files import remove, write_aside

MISTAKE = "mistake.txt"


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
    config.rows_of_step(PackedCorpus(corpus).index.sequence_length)
    mistake = directory / MISTAKE
    remove(mistake)
    task = {
        "kind": type(config),
        "config": config.model_dump(mode="json"),
        "directory": str(directory),
        "student": str(student),
        "corpus": str(corpus),
    }
    # Not whether there is one here: the driver may run on a head without.
    uses_gpu = gpus_for("student") > 0
    trainer = TorchTrainer(
        cast(Any, train_worker),
        train_loop_config=task,
        torch_config=TorchConfig(backend="nccl" if uses_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cast(Any, config.train.num_workers),
            use_gpu=uses_gpu,
            # Ray gives a worker one core where it has no GPU.
            resources_per_worker={"GPU" if uses_gpu else "CPU": 1, **resources_of("student")},
        ),
        run_config=RunConfig(
            name=f"{config.stage}-{os.getpid()}",
            storage_path=str(directory / "ray"),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError:
        if not mistake.exists():
            raise
    remove(directory / "ray")
    if mistake.exists():
        raise ValueError(mistake.read_text(encoding="utf-8"))
    remove(directory / "checkpoints")


def train_worker(task: dict[str, Any]) -> None:
    """One worker; see the module docstring on mistakes."""
    mistake = Path(task["directory"]) / MISTAKE
    if mistake.exists():
        return
    from actors.student_worker import run_worker

    try:
        directory, student, corpus = (Path(task[name]) for name in ("directory", "student", "corpus"))
        run_worker(task["kind"].model_validate(task["config"]), directory, student, corpus, announced_losses())
    except (ValueError, FloatingPointError) as error:
        with write_aside(mistake) as aside:
            aside.write_text(str(error), encoding="utf-8")
        if get_context().get_world_size() > 1:
            # Only a crash makes Ray end the other workers, which may wait for this one.
            raise


def announced_losses() -> Callable[[], int] | None:
    """Counts the machines of this group that the cloud has announced to take back; None where nobody watches for that.

    All workers must ask together: Ray lets none go on before all have asked, and tells all the same.
    """
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0":
        return None

    def count() -> int:
        info = get_preemption_info()
        return len(info.preempted_node_to_ranks) if info else 0

    return count
