"""How good models are: held-out perplexity per source, accuracy on labels, lm-eval's tasks.

ray job submit --working-dir . -- python -m jobs.evaluate --config configs/evaluate/quickstart.yaml run=$PWD/runs/mine

connect ─► perplexity and accuracy of each checkpoint (scores.json) ─► tasks of each subject (harness/, harness.json) ─► tables
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from actors.connection import connect
from actors.measuring import joined, measure
from actors.placement import gpus_for, resources_of
from actors.remote import Remote
from jobs.cli import run_job
from wfray.config.evaluate import EvaluateConfig
from wfray.evals import Scores
from wfray.runs import MetricsLog, Stage
from wfray.runs.files import remove

if TYPE_CHECKING:
    from actors.evaluator import Evaluator

HARNESS = "harness"


def main(config: EvaluateConfig) -> None:
    """Measure one subject after the other, print the tables, write scores.json and harness.json."""
    stage = Stage.of(config)
    if stage.done:
        print(f"{config.stage}: already done in {stage.directory}")
        return
    connect()
    tables = []
    with stage, stage.metrics() as metrics:
        if not stage.resumed:
            remove(stage.directory / HARNESS)
        if config.checkpoints:
            tables.append(measure_checkpoints(config, stage, metrics))
        if config.harness:
            tables.append(run_tasks(config, stage, metrics))
        if config.tracking:
            # Importing it takes a second that only those who use it should pay.
            from wfray.train.tracking import log_once

            log_once(config, config.tracking, stage.directory, stage.figures)
    print("\n\n".join(tables))


def measure_checkpoints(config: EvaluateConfig, stage: Stage, metrics: MetricsLog) -> str:
    """Perplexity and accuracy of the checkpoints; the table."""
    assert config.corpus is not None
    evaluator = start_evaluator(config, stage.inputs["corpus"] / "corpus")
    scores, share = Scores(precision=evaluator.precision(), subjects=[]), 1 / len(config.checkpoints)
    for begun, subject in enumerate(config.checkpoints):

        def tell(done: float, message: str, begun: int = begun, name: str = subject.name) -> None:
            metrics.write(progress=(begun + done) * share, message=f"{name} on {message}")

        sources = evaluator.open(subject, stage.inputs[subject.name] / subject.kind)
        measured, written = measure(evaluator, config, subject, sources, tell)
        scores.subjects.append(measured)
        scores.continuations = joined(scores.continuations, written)
    stage.figures |= scores.figures()
    stage.add_output(scores.write(stage.directory))
    return scores.table()


def run_tasks(config: EvaluateConfig, stage: Stage, metrics: MetricsLog) -> str:
    """lm-eval's tasks; the table."""
    # lm-eval takes seconds to import, which an evaluation without it should not pay.
    from actors.harness import run_harness

    def report(progress: float, message: str) -> None:
        metrics.write(progress=round(progress, 3), message=message)

    scores = run_harness(config, stage.inputs, stage.directory / HARNESS, report)
    stage.figures[HARNESS] = scores.figures()
    stage.add_output(stage.directory / HARNESS)
    stage.add_output(scores.write(stage.directory))
    return scores.table()


def start_evaluator(config: EvaluateConfig, corpus: Path) -> "Evaluator":
    """The evaluator, in an actor with a GPU where the cluster has one."""
    resources: dict[str, Any] = {
        "num_cpus": config.num_cpus,
        "num_gpus": min(1, gpus_for("evaluate")),
        "resources": resources_of("evaluate"),
    }
    return cast("Evaluator", Remote("actors.evaluator:Evaluator", config, corpus, **resources))


if __name__ == "__main__":
    run_job(EvaluateConfig, main)
