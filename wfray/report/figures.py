"""The report's charts, from the facts of a run: each in a wide and a narrow drawing, of which the page shows the one that fits."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from wfray.evals import Scores
from wfray.report.charts import Band, DotPlot, DotRow, Level, Line, LineChart, Mark
from wfray.report.facts import TERMS, RunFacts, StageFacts
from wfray.report.numbers import perplexity, significant

WIDE, NARROW, PANEL = 1000, 380, 240
PARTS = ("cross_entropy", "logits_kl", "concrete_score", "certainty", "alignment", "attention_relations")


def both_widths(draw: Callable[[int], Markup]) -> Markup:
    """The chart drawn for a wide and for a narrow page."""
    wide, narrow = draw(WIDE), draw(NARROW)
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def journey(facts: RunFacts) -> Markup | None:
    """Cross-entropy over all training stages in a row, with the held-out cross-entropy of the student at their ends."""
    stages = [stage for stage in facts.training if "cross_entropy" in stage.terms]
    if not stages:
        return None
    starts, total = {}, 0.0
    for stage in stages:
        starts[stage.name] = total
        total += stage.training_rows[-1]["tokens"]
    ends = [*list(starts.values())[1:], total]
    curves = [Line([(starts[s.name] + x, y) for x, y in s.series("cross_entropy")]) for s in stages]
    bands = [Band(starts[s.name], end, s.name) for s, end in zip(stages, ends, strict=True)]
    marks, levels = heldout_marks(facts.scores, stages, starts)
    first, last = curves[0].points[0][1], curves[-1].points[-1][1]
    description = (
        f"Cross-entropy on training text from {significant(first)} to {significant(last)} nats a token over "
        f"{total:,.0f} tokens in the stages {', '.join(starts)}."
    )

    def draw(width: int) -> Markup:
        shown = marks if width == WIDE else [Mark(m.x, m.y, significant(m.y), m.colour, m.shape) for m in marks]
        chart = LineChart(description, curves, width, 340 if width == WIDE else 300, "tokens", "nats a token", shown, levels, bands)
        return chart.svg()

    return both_widths(draw)


def heldout_marks(scores: Scores | None, stages: list[StageFacts], starts: dict[str, float]) -> tuple[list[Mark], list[Level]]:
    """Where the evaluated students stand on the journey, and the level of the full-precision original."""
    if scores is None:
        return [], []
    ends = {stage.name: starts[stage.name] + stage.training_rows[-1]["tokens"] for stage in stages}
    places = {**ends, stages[0].manifest.config["student"]: 0.0}
    students = [subject for subject in scores.subjects if subject.kind == "student" and subject.reference in places]
    marks = [
        Mark(places[s.reference], s.overall.loss, f"{s.name} {significant(s.overall.loss)}", colour=1, shape="diamond") for s in students
    ]
    originals = [subject for subject in scores.subjects if subject.kind == "original"]
    return marks, [Level(s.overall.loss, f"{s.name} {significant(s.overall.loss)}, held-out") for s in originals]


@dataclass(frozen=True)
class Panel:
    """A small chart of one column of a stage's metrics."""

    name: str
    span: str
    """First and last value, with the unit."""
    chart: Markup


def stage_panels(stage: StageFacts) -> list[Panel]:
    """One small chart for each column that the stage logs, all on the same axis of tokens; a loss of one term is drawn once."""
    twice = any(stage.series(name) == stage.series("loss") for name in PARTS)
    return [panel(stage, name) for name in stage.terms if not (twice and name == "loss")]


def panel(stage: StageFacts, name: str) -> Panel:
    """The panel of one column; the loss, its parts and the schedules each have a colour of their own."""
    points = stage.series(name)
    unit = " nats a token" if name in ("cross_entropy", "logits_kl") else ""
    span = f"{significant(points[0][1])} → {significant(points[-1][1])}{unit}"
    colour = 0 if name == "loss" else 1 if name in PARTS else 2
    chart = LineChart(f"{stage.name}, {TERMS[name]}: {span}", [Line(points, colour)], PANEL, 150).svg()
    return Panel(TERMS[name], span, chart)


def perplexity_plot(scores: Scores) -> Markup:
    """Every subject's perplexity on every source."""
    names = [*scores.source_names, "all sources"]
    rows = [DotRow(name, [(s.sources[name] if name in s.sources else s.overall).perplexity for s in scores.subjects]) for name in names]
    told = "; ".join(f"{row.name}: " + ", ".join(map(perplexity, (v for v in row.values if v is not None))) for row in rows)
    description = f"Held-out perplexity of {', '.join(subject.name for subject in scores.subjects)}. {told}."
    return both_widths(lambda width: DotPlot(description, rows, width, "perplexity, logarithmic", 34 if width == WIDE else 44).svg())
