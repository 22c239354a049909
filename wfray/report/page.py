"""The page: a template and a style sheet filled with the facts of a run, everything inline, no network, no scripts."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wfray.report import figures, numbers
from wfray.report.charts import key
from wfray.report.facts import TERMS, RunFacts
from wfray.report.headline import gaps, stored_as, tiles
from wfray.runs import write_aside

HERE = Path(__file__).parent
FILTERS = {
    "integer": numbers.integer,
    "significant": numbers.significant,
    "perplexity": numbers.perplexity,
    "num_bytes": numbers.num_bytes,
    "duration": numbers.duration,
    "percent": numbers.percent,
    "times": numbers.times,
    "stored_as": stored_as,
    "term": TERMS.__getitem__,
    "yaml": lambda tree: yaml.safe_dump(tree, sort_keys=False, allow_unicode=True),
}


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory from what the directory holds; a partial run gives a partial report.

    Args:
        run: the run directory.

    Returns:
        The path of the page.

    Raises:
        ValueError: the directory does not exist or holds no stage.
    """
    target = run / "report.html"
    page = render(RunFacts.read(run))
    with write_aside(target) as aside:
        aside.write_text(page, encoding="utf-8")
    return target


def render(facts: RunFacts) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(FILTERS)
    return environment.get_template("page.html.j2").render(content(facts))


def content(facts: RunFacts) -> dict[str, Any]:
    """What the template is filled with."""
    convert, pack, export = facts.last("convert"), facts.last("pack"), facts.last("export")
    return {
        "style": (HERE / "style.css").read_text(encoding="utf-8"),
        "facts": facts,
        "tiles": tiles(facts),
        "gaps": gaps(facts),
        "num_parameters": convert.figures["num_parameters"] if convert else None,
        "journey": figures.journey(facts),
        "perplexity_plot": figures.perplexity_plot(facts.scores) if facts.scores else None,
        "panels": {stage.name: figures.stage_panels(stage) for stage in facts.training},
        "sources": pack.figures["sources"] if pack else {},
        "export": export.figures if export else None,
        "model_file": export.directory / export.figures["model"]["path"] if export and "linear_type" in export.figures["model"] else None,
        "key": key,
        "prompts": list(dict.fromkeys(sample["prompt"] for sample in facts.answers)),
        "longest_seconds": max(stage.manifest.wall_seconds for stage in facts.stages) or 1.0,
        "total_seconds": sum(stage.manifest.wall_seconds for stage in facts.stages),
    }
