"""lm-eval's tasks for one model: run, kept in its own format, and summed up.

Of a subject its folder holds `results.json` (what lm-eval returns) and `samples_<task>.jsonl` (every item with its prompts, the
model's answers and the scores that follow from them).
"""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from wfray.config.harness import Harness
from wfray.evals.harness_scores import Comparison, SubjectTasks, TaskScore, label_of
from wfray.evals.paired import compare
from wfray.runs import write_aside

TASKS = Path(__file__).parent / "tasks"
RESULTS = "results.json"
Items = dict[tuple[int, str], float]
"""The score of each item, by its number and the hash of its content."""


def task_manager(harness: Harness) -> TaskManager:
    """Our tasks and those of the configuration's folders, and lm-eval's own, which take ten seconds to index, where one is asked for.

    Raises:
        ValueError: a task is unknown.
    """
    folders: list[str | Path] = [TASKS, *harness.include]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not all(manager.match_tasks([name]) for name in harness.task_names):
        manager = TaskManager(include_path=folders)
    if unknown := [name for name in harness.task_names if not manager.match_tasks([name])]:
        raise ValueError(f"lm-eval knows no task {', '.join(unknown)}: see `python -m lm_eval ls tasks`; harness.include adds folders")
    return manager


def run_tasks(lm: LM, harness: Harness) -> dict[str, Any]:
    """All tasks of a configuration for one model, as lm-eval's `simple_evaluate` does them.

    Raises:
        ValueError: a task is unknown.
    """
    manager = task_manager(harness)
    names = [name for pattern in harness.task_names for name in manager.match_tasks([pattern])]
    results = simple_evaluate(
        model=lm,
        tasks=list(names),
        num_fewshot=harness.num_fewshot,
        limit=harness.item_limit,
        apply_chat_template=harness.chat_template,
        system_instruction=harness.system_instruction,
        bootstrap_iters=harness.bootstrap_iterations,
        task_manager=manager,
    )
    assert results is not None
    return dict(results)


def save(results: dict[str, Any], described: dict[str, Any], directory: Path) -> None:
    """Write what lm-eval returned into `directory`.

    Args:
        results: of `run_tasks`.
        described: what stands for the model in it.
        directory: the subject's folder.
    """
    whole = {key: value for key, value in results.items() if key != "samples"}
    whole["config"] = {**whole["config"], **described}
    for task, samples in results["samples"].items():
        with write_aside(directory / f"samples_{task}.jsonl") as aside:
            aside.write_text("".join(dumped(sample) + "\n" for sample in samples), encoding="utf-8")
    with write_aside(directory / RESULTS) as aside:
        aside.write_text(dumped(whole, indent=2) + "\n", encoding="utf-8")


def dumped(value: Any, indent: int | None = None) -> str:
    """JSON as lm-eval writes it."""
    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, indent=indent)


def summary(name: str, kind: str, directory: Path) -> SubjectTasks:
    """The scores in a subject's folder."""
    results = json.loads((directory / RESULTS).read_text(encoding="utf-8"))
    scores = []
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, filter_name = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                stderr = values.get(f"{metric}_stderr,{filter_name}")
                stderr = stderr if isinstance(stderr, float | int) else None
                num_items = int(values.get("sample_len", 0))
                scores.append(TaskScore(task=task, metric=metric, filter=filter_name, value=value, stderr=stderr, num_items=num_items))
    return SubjectTasks(name=name, kind=kind, tasks=scores)


def compared(pairs: list[tuple[str, str]], directory: Path) -> list[Comparison]:
    """Pairs of subjects, by their folders in `directory`, on every task and every metric that is the mean of its items.

    Raises:
        ValueError: two subjects were asked different items.
    """
    found = []
    for first, second in pairs:
        scores = [summary(name, "", directory / name) for name in (first, second)]
        for file in sorted(file.name for file in (directory / first).glob("samples_*.jsonl")):
            task = file.removeprefix("samples_").removesuffix(".jsonl")
            ours, theirs = (item_scores(directory / name / file) for name in (first, second))
            for label in ours.keys() & theirs.keys():
                if ours[label].keys() != theirs[label].keys():
                    raise ValueError(f"{first} and {second} were asked different items of {task}: delete {str(directory)!r} and run again")
                if all(is_mean(each.find(task, label), items) for each, items in zip(scores, (ours[label], theirs[label]), strict=True)):
                    paired = compare(list(ours[label].values()), [theirs[label][item] for item in ours[label]])
                    found.append(Comparison(first=first, second=second, task=task, metric=label, paired=paired))
    return sorted(found, key=lambda each: (each.first, each.second, each.task, each.metric))


def is_mean(score: TaskScore | None, items: Items) -> bool:
    """Whether a score is the mean of its items, so that a difference of items is one of scores: perplexities are not."""
    return score is not None and math.isclose(score.value, fmean(items.values()), rel_tol=1e-6, abs_tol=1e-9)


def item_scores(file: Path) -> dict[str, Items]:
    """By label of each metric with one number an item."""
    scores: dict[str, Items] = {}
    with file.open(encoding="utf-8") as lines:
        for sample in map(json.loads, lines):
            for metric in sample["metrics"]:
                if isinstance(sample[metric], int | float):
                    label = label_of(metric, sample["filter"])
                    scores.setdefault(label, {})[(sample["doc_id"], sample["doc_hash"])] = float(sample[metric])
    return scores
