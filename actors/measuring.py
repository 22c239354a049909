"""What is asked of the evaluator about one subject: its losses, its answers to labelled examples, and texts on prompts, step by step."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from wfray.config.evaluate import EvaluateConfig, Subject
from wfray.evals import Continuation, SubjectScores

if TYPE_CHECKING:
    from actors.evaluator import Evaluator


def measure(
    evaluator: "Evaluator", config: EvaluateConfig, subject: Subject, sources: list[str], tell: Callable[[float, str], None]
) -> tuple[SubjectScores, list[Continuation]]:
    """The open subject's scores on each source, and what it wrote; tells after each step which part of them is done."""
    prompts = sources if config.continuations and subject.name in config.continuations.subjects else []
    num_steps = len(sources) + len(config.classification) + len(prompts)
    scores = SubjectScores(**subject.model_dump(), sources={}, accuracy={})
    for number, source in enumerate(sources, start=1):
        scores.sources[source] = evaluator.score(source)
        tell(number / num_steps, f"{source}: perplexity {scores.sources[source].perplexity:,.2f}")
    for number, labelled in enumerate(config.classification, start=len(sources) + 1):
        scores.accuracy[labelled.source] = evaluator.classify(labelled)
        tell(number / num_steps, f"{labelled.source}: accuracy {scores.accuracy[labelled.source].share:.1%}")
    written: list[Continuation] = []
    for number, source in enumerate(prompts, start=num_steps - len(prompts) + 1):
        written += evaluator.write_on(source)
        tell(number / num_steps, f"{source}: continuations written")
    return scores, written


def joined(known: list[Continuation], new: list[Continuation]) -> list[Continuation]:
    """Continuations of the same prompts, with the answers of all subjects."""
    if not known or not new:
        return known or new
    return [old.model_copy(update={"answers": old.answers | add.answers}) for old, add in zip(known, new, strict=True)]
