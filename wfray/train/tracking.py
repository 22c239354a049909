"""Where a stage's figures go: `metrics.jsonl` always, Weights & Biases besides where `tracking` is configured.

W&B writes in a process of its own, so a step waits for a queue and not for a disk or network. The id of its run is kept in the
stage's directory: a restarted job goes on in the same run, and a stage that is done anew begins another. Steps that a
resumed job computes again have the same figures; W&B keeps those that it has.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from wfray.config.base import StageConfig
from wfray.config.train import Tracking, TrainConfig
from wfray.runs.metrics import MetricsLog

RUN_ID = "wandb_run_id"
Log = Callable[..., None]


@contextmanager
def open_log(config: TrainConfig, directory: Path, rank: int, resume_step: int) -> Iterator[Log]:
    """Yield the function that logs a row of figures, for the worker `rank` of the stage in `directory`, resumed after `resume_step`.

    Raises:
        ValueError: W&B is to be online without a key.
    """
    with MetricsLog(directory / ("metrics.jsonl" if rank == 0 else f".rank{rank}.jsonl"), resume_step) as metrics:
        if config.tracking is None or rank != 0:
            yield metrics.write
            return
        with wandb_run(config, config.tracking, directory) as run:

            def log(**row: Any) -> None:
                metrics.write(**row)
                run.log(row, step=row["step"])

            yield log


def log_once(config: StageConfig, tracking: Tracking, directory: Path, figures: dict[str, Any]) -> None:
    """A W&B run with the figures of a stage that measures once, nested names joined by `/`."""
    with wandb_run(config, tracking, directory) as run:
        run.log(dict(flat(figures)))


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree, each under its path."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


@contextmanager
def wandb_run(config: StageConfig, tracking: Tracking, directory: Path) -> Iterator[Any]:
    """Yield the W&B run of a stage, begun or gone on with; its files lie in `directory/wandb`, whole when this returns."""
    # Importing it takes a second that only those who use it should pay.
    import wandb

    with ExitStack() as ending:
        # A run calls itself finished before its process has written the last rows, and Ray does not wait for that process.
        ending.callback(wandb.teardown)
        run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            id=run_id(directory),
            resume="allow",
            name=f"{directory.parent.name}/{directory.name}",
            group=directory.parent.name,
            job_type=config.stage,
            config=config.model_dump(mode="json"),
            dir=directory,
            mode=mode_of(tracking),
            settings=wandb.Settings(console="off", silent=True),
        )
        yield ending.enter_context(run)


def run_id(directory: Path) -> str:
    """The id of the stage's W&B run, made on the first call."""
    path = directory / RUN_ID
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:16], encoding="utf-8")
    return path.read_text(encoding="utf-8")


def mode_of(tracking: Tracking) -> Literal["online", "offline"]:
    """`online` or `offline`; raises `ValueError` where online was asked for without a key."""
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    if tracking.mode == "online" and not has_key:
        raise ValueError("tracking.mode online needs a key: set WANDB_API_KEY, or set tracking.mode=offline and run `wandb sync` later")
    if tracking.mode == "auto":
        return "online" if has_key else "offline"
    return tracking.mode
