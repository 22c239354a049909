"""What the training stages share: student + corpus (+ teacher) -> student."""

from pathlib import Path

from actors.connection import connect
from actors.student import train_student
from actors.teacher_record import taught_by_another
from wfray.config.train import TrainConfig
from wfray.runs import Stage, read_metrics


def run_training(config: TrainConfig) -> None:
    """Run one training stage, or go on with it where an interrupted attempt stopped."""
    stage = Stage.of(config)
    if stage.done and not has_another_teacher(config, stage.directory):
        print(f"{config.stage}: already done in {stage.directory}")
        return
    stage.protect("checkpoints")
    connect()
    with stage:
        if not stage.resumed:
            stage.clear()
        train_student(config, stage.directory, stage.inputs["student"] / "student", stage.inputs["corpus"] / "corpus")
        rows = read_metrics(stage.directory / "metrics.jsonl")
        stage.figures = summary(rows)
        stage.add_output(stage.directory / "student")
    figures = stage.figures
    print(f"{config.stage}: loss {figures['first_loss']:.3f} -> {figures['last_loss']:.3f} after {figures['tokens']:,} tokens")
    if stopped := figures.get("stopped"):
        print(f"{config.stage}: ended early, {stopped}")


def has_another_teacher(config: TrainConfig, stage: Path) -> bool:
    """Whether the teacher that is deployed now is another one than taught a stage; where none is, that stays open."""
    if config.teacher is None:
        return False
    connect()
    return taught_by_another(config.teacher.application, stage)


def summary(rows: list[dict]) -> dict:
    """What the manifest says of a training stage."""
    speeds = sorted(row["tokens_per_second"] for row in rows)
    losses = [row["loss"] for row in rows if "loss" in row]
    mixing = {"mixing_fraction": mixing_fraction(rows)} if "mixing_fraction" in rows[0] else {}
    ended = {"stopped": rows[-1]["stopped"]} if "stopped" in rows[-1] else {}
    return {
        "tokens": rows[-1]["tokens"],
        "steps": rows[-1]["step"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "refused_steps": len(rows) - len(losses),
        "tokens_per_second": speeds[len(speeds) // 2],
        "data_wait_fraction": max(row["data_wait_fraction"] for row in rows[1:] or rows),
        "teacher_wait_fraction": sum(row["teacher_wait_fraction"] for row in rows) / len(rows),
        **mixing,
        **ended,
    }


def mixing_fraction(rows: list[dict]) -> float:
    """The part of the whole time that went into learning the weights of the sources."""
    seconds = [1 / row["tokens_per_second"] for row in rows]
    return sum(row["mixing_fraction"] * second for row, second in zip(rows, seconds, strict=True)) / sum(seconds)
