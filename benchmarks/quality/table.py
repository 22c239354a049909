"""The result of a study: accuracy of every arm over its seeds, against the full-precision teacher, as a table and a plot.

Intervals are at 95% and over the choice of items: an item's score is the share of seeds that got it right, since answers of several
seeds to one item are not independent, and differences to fp_sft are paired, item by item. What another set of seeds would change they
do not cover: for that the values by seed stand beside them.
"""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import BaseModel

from benchmarks.quality.study import ARMS, Study
from wfray.evals import Accuracy, Scores
from wfray.evals.paired import Z95, Paired, compare
from wfray.evals.scores import aligned
from wfray.runs import Manifest, write_aside, write_json

NAMES = {
    "fp_sft": "FP-SFT (teacher)",
    "bitnet_sft": "BitNet-SFT",
    "subln": "+ SubLN",
    "ct": "+ alignment / CT",
    "logits_kd": "+ logits KD",
    "attention_kd": "+ attention KD",
    "bitdistill": "BitDistill (all)",
    "layers_kd": "SubLN + logits and layers KD",
    "ct_gradual": "CT, gradual",
    "teacher_start": "teacher's weights + logits KD",
    "teacher_start_gradual": "teacher's weights, gradual",
    "teacher_plain_gradual": "teacher's weights, gradual, no SubLN",
    "rounded": "teacher's weights, compensated, untrained",
    "rounded_norms": "the same + logits KD, norms alone learn",
    "rounded_unquantized": "the same, norms, embedding and head learn",
}


class ArmResult(BaseModel):
    """One arm over all seeds that are done."""

    arm: str
    seeds: list[int]
    by_seed: list[float]
    """Shares of right answers."""
    accuracy: float
    low: float
    high: float
    to_teacher: Paired | None
    """Against fp_sft, over items; None for itself."""
    to_teacher_by_seed: list[float]
    """Differences of the shares; empty for fp_sft."""
    tokens: int
    """Task tokens of one seed's training."""
    seconds: float
    """Of one seed's training on the task, mean."""


def results(run: Path) -> list[ArmResult]:
    """What the complete evaluations in a study's run say, of whatever seeds, arm by arm in the table's order."""
    seeds = sorted(int(seed) for stage in run.glob("evaluate-*") if (seed := stage.name.removeprefix("evaluate-")).isdecimal())
    scores = {seed: Scores.read(run / f"evaluate-{seed}") for seed in seeds if is_complete(run / f"evaluate-{seed}")}
    answers = {
        name: {seed: subject.accuracy for seed, found in scores.items() for subject in found.subjects if subject.name == name}
        for name in NAMES
    }
    flat = {name: {seed: next(iter(by_source.values())) for seed, by_source in found.items()} for name, found in answers.items() if found}
    for name, found in flat.items():
        require_one_recipe(run, name, list(found))
    return [arm_result(name, found, flat["fp_sft"], run) for name, found in flat.items()]


def require_one_recipe(run: Path, name: str, seeds: list[int]) -> None:
    """Raise `ValueError` where an arm was not trained with the same settings for every seed."""
    recipes: dict[str, int] = {}
    for seed in seeds:
        manifest = Manifest.read(run / ARMS[name].stage(name, seed))
        recipes.setdefault(recipe_of(manifest.config) if manifest else "", seed)
    if len(recipes) > 1:
        first, other = list(recipes.values())[:2]
        raise ValueError(
            f"{name}-{first} and {name}-{other} were trained with different settings: run both again, or delete evaluate-{other}"
        )


def recipe_of(config: dict[str, Any]) -> str:
    """A stage's configuration without what differs between the seeds of an arm."""
    train = {key: value for key, value in config.get("train", {}).items() if key != "seed"}
    rest = {key: value for key, value in config.items() if key not in ("run", "stage", "teacher", "train", "student", "model")}
    student = config.get("student", "").removesuffix(f"-{config.get('train', {}).get('seed')}")
    return json.dumps([rest, train, student], sort_keys=True)


def is_complete(stage: Path) -> bool:
    """Whether a stage ended well."""
    manifest = Manifest.read(stage)
    return manifest is not None and manifest.status == "complete"


def arm_result(name: str, found: dict[int, Accuracy], teacher: dict[int, Accuracy], run: Path) -> ArmResult:
    """One arm's row."""
    items, shares = by_item(list(found.values())), [each.share for each in found.values()]
    manifests = [manifest for seed in found if (manifest := Manifest.read(run / ARMS[name].stage(name, seed)))]
    half = Z95 * stdev(items) / len(items) ** 0.5
    is_teacher = name == "fp_sft"
    return ArmResult(
        arm=name,
        seeds=list(found),
        by_seed=shares,
        accuracy=fmean(items),
        low=fmean(items) - half,
        high=fmean(items) + half,
        to_teacher=None if is_teacher else compare(by_item([teacher[seed] for seed in found]), items),
        to_teacher_by_seed=[] if is_teacher else [share - teacher[seed].share for seed, share in zip(found, shares, strict=True)],
        tokens=manifests[0].figures.get("tokens", 0),
        seconds=sum(manifest.wall_seconds for manifest in manifests) / len(manifests),
    )


def by_item(seeds: list[Accuracy]) -> list[float]:
    """For each item the share of seeds that got it right."""
    return [fmean(right) for right in zip(*(each.right for each in seeds), strict=True)]


def table(rows: list[ArmResult]) -> str:
    """The table as text; accuracies are percentages, differences points."""
    head = ("arm", "accuracy", "95% interval", "by seed", "to FP-SFT", "95% interval", "by seed", "tokens", "seconds")
    return aligned([head, *(cells(row) for row in rows)])


def cells(row: ArmResult) -> tuple[str, ...]:
    """One row of the table."""
    difference: tuple[str, ...] = ("", "", "")
    if (paired := row.to_teacher) is not None:
        by_seed = " ".join(f"{100 * value:+.1f}" for value in row.to_teacher_by_seed)
        difference = (f"{100 * paired.difference:+.1f}", f"{100 * paired.low:+.1f} to {100 * paired.high:+.1f}", by_seed)
    interval, by_seed = f"{100 * row.low:.1f}-{100 * row.high:.1f}", " ".join(f"{100 * share:.1f}" for share in row.by_seed)
    return (NAMES[row.arm], f"{100 * row.accuracy:.1f}", interval, by_seed, *difference, f"{row.tokens:,}", f"{row.seconds:.0f}")


def plot(rows: list[ArmResult], title: str, target: Path) -> None:
    """Accuracy with intervals, arm by arm, seeds as dots, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.55 * len(rows) + 1.4), layout="constrained")
    for place, row in enumerate(rows):
        errors = [[100 * (row.accuracy - row.low)], [100 * (row.high - row.accuracy)]]
        axes.errorbar([100 * row.accuracy], [place], xerr=errors, fmt="o", color="#1f5fa8", capsize=4)
        axes.scatter([100 * share for share in row.by_seed], [place] * len(row.by_seed), s=18, color="#c1571f", zorder=3)
    axes.axvline(100 * rows[0].accuracy, color="grey", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [NAMES[row.arm] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on held-out examples, %; bars: 95% interval over items, dots: seeds")
    axes.set_title(title)
    with write_aside(target) as aside:
        figure.savefig(aside, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def write_results(study: Study, run: Path) -> str:
    """Write `results.json`, `results.txt` and `results.svg` into the run; returns the table."""
    rows = results(run)
    told = table(rows)
    tree: dict[str, Any] = {"study": study.model_dump(mode="json"), "arms": [row.model_dump(mode="json") for row in rows]}
    write_json(run / "results.json", tree)
    with write_aside(run / "results.txt") as aside:
        aside.write_text(told + "\n", encoding="utf-8")
    depth = f"{study.num_layers} layers" if study.num_layers else "all layers"
    plot(rows, f"{run.name}: {depth}, {rows[0].tokens:,} task tokens, seeds {', '.join(map(str, rows[0].seeds))}", run / "results.svg")
    return told
