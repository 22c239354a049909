"""`harness.json`: the scores of lm-eval's tasks for every subject, and subjects compared item by item. Loads without torch."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from wfray.evals.paired import Paired
from wfray.evals.scores import aligned
from wfray.runs import write_json

FILE = "harness.json"


class TaskScore(BaseModel):
    """One metric of one task."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    """None where lm-eval has no estimate."""
    num_items: int

    @property
    def label(self) -> str:
        """The metric, with what was taken out of the answer before it where lm-eval has more than one way."""
        return label_of(self.metric, self.filter)


class SubjectTasks(BaseModel):
    """One subject's scores."""

    name: str
    kind: str
    tasks: list[TaskScore]

    def find(self, task: str, label: str) -> TaskScore | None:
        """One of them."""
        return next((score for score in self.tasks if (score.task, score.label) == (task, label)), None)


class Comparison(BaseModel):
    """Two subjects on the items of one task."""

    first: str
    second: str
    task: str
    metric: str
    """A label, see `TaskScore`."""
    paired: Paired


class HarnessScores(BaseModel):
    """The content of `harness.json`."""

    subjects: list[SubjectTasks]
    comparisons: list[Comparison] = []

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Task and label of every row of the table."""
        return list(dict.fromkeys((score.task, score.label) for subject in self.subjects for score in subject.tasks))

    def figures(self) -> dict[str, Any]:
        """Scores for a manifest: subject, task, label."""
        found: dict[str, Any] = {}
        for subject in self.subjects:
            for score in subject.tasks:
                found.setdefault(subject.name, {}).setdefault(score.task, {})[score.label] = round(score.value, 6)
        return found

    def table(self) -> str:
        """Scores with standard errors, tasks as rows, and the comparisons below."""
        rows: list[tuple[str, ...]] = [("task, metric", *(subject.name for subject in self.subjects))]
        rows += [(f"{task}, {label}", *(told(s.find(task, label)) for s in self.subjects)) for task, label in self.rows]
        lines = [aligned(rows)]
        if self.comparisons:
            head = ("second - first", "task, metric", "difference", "95% interval", "items", "first alone", "second alone", "McNemar p")
            lines.append(aligned([head, *(comparison_row(each) for each in self.comparisons)]))
        return "\n\n".join(lines)

    def write(self, directory: Path) -> Path:
        """Write `harness.json` into `directory`; returns its path."""
        write_json(directory / FILE, self.model_dump(mode="json"))
        return directory / FILE

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read `harness.json` from `directory`."""
        return cls.model_validate_json((directory / FILE).read_text(encoding="utf-8"))


def label_of(metric: str, filter_name: str) -> str:
    """A metric's name in tables."""
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


def told(score: TaskScore | None) -> str:
    """A score with its standard error."""
    if score is None:
        return ""
    return f"{score.value:.4g}" + ("" if score.stderr is None else f" ± {score.stderr:.2g}")


def comparison_row(each: Comparison) -> tuple[str, ...]:
    """One comparison's cells."""
    paired = each.paired
    alone = [str(number) if number is not None else "" for number in (paired.only_first, paired.only_second)]
    p_value = "" if paired.p_value is None else f"{paired.p_value:.2g}"
    interval = f"{paired.low:+.4f} to {paired.high:+.4f}"
    names, what = f"{each.second} - {each.first}", f"{each.task}, {each.metric}"
    return (names, what, f"{paired.difference:+.4f}", interval, str(paired.num_items), *alone, p_value)
