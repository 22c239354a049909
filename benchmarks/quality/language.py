"""General language modelling: held-out perplexity of each domain against tokens spent, for the ways to train a ternary student.

    python -m benchmarks.quality.language --config benchmarks/quality/language.yaml [budgets='[16384, 32768]']

Every arm is trained from the converted model once for each budget, with a whole learning-rate schedule each, so that a point on a
curve is the end of a run and not its middle. Budgets are compared at equal tokens, and at equal time: log-perplexity is
interpolated, over the logarithm of the training time, to the longest time that every arm reaches.
"""

import math
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from jobs.cli import run_job
from jobs.pipeline import main as run_pipeline
from wfray.config.base import Config, RunPath
from wfray.config.pipeline import LocalClusterConfig, PipelineConfig, StageCall
from wfray.evals import Scores, SubjectScores
from wfray.evals.scores import aligned
from wfray.runs import Manifest, read_metrics, resolve_home, write_aside, write_json

CE = {"kind": "cross_entropy"}
ALIGNMENT = {"kind": "alignment", "weight": {"start": 8.0, "end": 2.0, "shape": "cosine"}, "layers": "progressive"}


@dataclass(frozen=True)
class Arm:
    """One way to train the student."""

    objectives: list[dict[str, Any]]
    start: Literal["none", "output"] = "output"
    """Placement of SubLN in the converted model."""
    values: dict[str, Any] = field(default_factory=dict)
    """Of the distill configuration, by dotted key."""


def logits(**change: Any) -> list[dict[str, Any]]:
    """Cross-entropy of a fifth of its weight and KL of the logits."""
    return [{**CE, "weight": 0.2}, {"kind": "logits_kl", **change}]


ARMS: dict[str, Arm] = {
    "plain": Arm([CE], start="none"),
    "subln": Arm([CE]),
    "align": Arm([CE, ALIGNMENT]),
    "logits_t1": Arm(logits(temperature=1.0)),
    "logits_t2": Arm(logits(temperature=2.0)),
    "logits_t5": Arm(logits(temperature=5.0)),
    "topk_t1": Arm(logits(temperature=1.0, signal="topk")),
    "logits_t1_half_batch": Arm(logits(temperature=1.0), values={"train.batch_tokens": 512, "train.micro_rows": 1}),
    "logits_t1_muon": Arm(logits(temperature=1.0), values={"train.optimizer": {"kind": "muon", "learning_rate": 3e-3}}),
}


class LanguageStudy(Config):
    """A study of general language modelling; see the module docstring."""

    run: RunPath
    configs: dict[str, str]
    """The configuration file of each job: pack, convert, teacher, distill, evaluate."""
    budgets: list[PositiveInt] = Field(min_length=1)
    """Tokens."""
    arms: list[str] = Field(list(ARMS), min_length=1)
    seed: int = 0
    overrides: dict[str, dict[str, Any]] = {}
    """Values by dotted key, job by job."""
    cluster: LocalClusterConfig | None = LocalClusterConfig()
    address: str | None = None

    @property
    def subjects(self) -> list[tuple[str, int]]:
        """Arm and budget of every student."""
        return [(arm, budget) for arm in self.arms for budget in self.budgets]

    def pipeline(self, run: Path) -> PipelineConfig:
        """The stages of all arms and budgets."""
        calls = [self.call("pack", stage="pack"), self.call("teacher", application="teacher")]
        calls += [self.call("convert", **{"stage": f"convert-{place}", "subln.placement": place}) for place in ("none", "output")]
        for arm, budget in self.subjects:
            way = ARMS[arm]
            teacher = {"application": "teacher"} if len(way.objectives) > 1 else None
            values = {"stage": f"{arm}-{budget}", "student": f"convert-{way.start}", "objectives": way.objectives, "teacher": teacher}
            calls.append(self.call("distill", **values, **way.values, **{"train.tokens": budget, "train.seed": self.seed}))
        named = [{"name": f"{arm}-{budget}", "kind": "student", "reference": f"{arm}-{budget}"} for arm, budget in self.subjects]
        original = {"name": "original", "kind": "original", "reference": "convert-output"}
        calls.append(self.call("evaluate", stage="evaluate", subjects=[original, *named]))
        shared: dict[str, Any] = {"cluster": self.cluster, "address": self.address, "max_minutes": 600.0, "max_memory_gb": 16.0}
        return PipelineConfig(run=str(run), stages=calls, **shared)

    def call(self, job: Any, **values: Any) -> StageCall:
        """One stage of the pipeline."""
        return StageCall(job=job, config=self.configs[job], set={**self.overrides.get(job, {}), **values})


def training_seconds(run: Path, stage: str) -> float:
    """Time in training steps, without starting and saving."""
    rows = read_metrics(run / stage / "metrics.jsonl")
    manifest = Manifest.read(run / stage)
    assert manifest is not None
    tokens = manifest.figures["tokens"] / manifest.figures["steps"]
    return sum(tokens / row["tokens_per_second"] for row in rows if "tokens_per_second" in row)


def at_seconds(points: list[tuple[float, float]], seconds: float) -> float:
    """The loss after `seconds`, interpolated over the logarithm of time; before the first point its own."""
    if seconds <= points[0][0]:
        return points[0][1]
    for (t0, loss0), (t1, loss1) in zip(points, points[1:], strict=False):
        if seconds <= t1:
            share = (math.log(seconds) - math.log(t0)) / (math.log(t1) - math.log(t0))
            return loss0 + share * (loss1 - loss0)
    return points[-1][1]


def write_results(study: LanguageStudy, run: Path) -> str:
    """Write `results.json`, `results.txt` and `results.svg` into the run; returns the tables."""
    scores = Scores.read(run / "evaluate")
    found = {subject.name: subject for subject in scores.subjects}
    sources = [*scores.source_names, "all"]
    seconds = {f"{arm}-{budget}": training_seconds(run, f"{arm}-{budget}") for arm, budget in study.subjects}
    curves = {
        arm: sorted((seconds[name], found[name].overall.loss) for name in (f"{arm}-{b}" for b in study.budgets)) for arm in study.arms
    }
    shared = min(points[-1][0] for points in curves.values())
    rows = [("student", "tokens", "seconds", *sources)]
    rows += [(arm, f"{b:,}", f"{seconds[f'{arm}-{b}']:.0f}", *cells(found[f"{arm}-{b}"])) for arm, b in study.subjects]
    rows.append(("original", "", "", *cells(found["original"])))
    equal = [("student", f"perplexity after {shared:.0f} s of training")]
    equal += [(arm, f"{math.exp(at_seconds(points, shared)):,.1f}") for arm, points in curves.items()]
    told = aligned(rows) + "\n\n" + aligned(equal)
    tree = {"study": study.model_dump(mode="json"), "seconds": seconds, "equal_seconds": shared, "table": rows, "at_equal_time": equal}
    write_json(run / "results.json", tree)
    with write_aside(run / "results.txt") as aside:
        aside.write_text(told + "\n", encoding="utf-8")
    plot(study, found, sources, run / "results.svg")
    return told


def cells(subject: SubjectScores) -> list[str]:
    """Perplexity of every source, and of all."""
    return [f"{score.perplexity:,.1f}" for score in [*subject.sources.values(), subject.overall]]


def plot(study: LanguageStudy, found: dict[str, SubjectScores], sources: list[str], target: Path) -> None:
    """Perplexity against tokens, a panel a source, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(sources), figsize=(3.4 * len(sources), 3.6), layout="constrained")
    for panel, source in zip(panels, sources, strict=True):
        for arm, marker in zip(study.arms, cycle("osD^vPX"), strict=False):
            scored = [found[f"{arm}-{budget}"] for budget in study.budgets]
            values = [(each.overall if source == "all" else each.sources[source]).perplexity for each in scored]
            panel.plot(study.budgets, values, marker=marker, label=arm, linewidth=1.2, markersize=4)
        panel.set(xscale="log", yscale="log", title=source, xlabel="tokens")
    panels[0].set_ylabel("held-out perplexity")
    panels[-1].legend(fontsize="small")
    with write_aside(target) as aside:
        figure.savefig(aside, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main(study: LanguageStudy) -> None:
    """Pipeline, tables."""
    run = resolve_home(study.run)
    run_pipeline(study.pipeline(run), keep=False)
    print(write_results(study, run))
    print(f"written: {run}/results.json, results.txt, results.svg")


if __name__ == "__main__":
    run_job(LanguageStudy, main)
