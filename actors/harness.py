"""lm-eval's tasks on a cluster: actors that each hold the subject's model answer slices of its requests.

The job builds requests and scores answers with lm-eval itself (`wfray.evals.divided`), so there is nothing to merge but answers. An
actor that dies is started again by Ray and asked again; it opens the subject with the first question about it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
from lm_eval.api.instance import Instance

from actors.connection import wait
from actors.placement import gpus_for, resources_of
from wfray.config.evaluate import AnySubject, DiffusionSubject, EvaluateConfig, Subject
from wfray.data.packages import fetch
from wfray.evals import sets
from wfray.evals.diffusion_lm import DiffusionLM
from wfray.evals.divided import Answer, DividedLM, with_errors
from wfray.evals.harness import RESULTS, compared, run_tasks, save, summary
from wfray.evals.harness_scores import HarnessScores
from wfray.evals.models import open_lm
from wfray.evals.slices import Kind, Request, divide
from wfray.runs import remove, remove_partials

Report = Callable[[float, str], None]
MAX_RESTARTS = 3


class Answerer:
    """The actor: one model at a time."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.name = config, ""

    def ask(self, name: str, path: Path | None, method: str, *arguments: Any) -> Any:
        """An attribute of the model of the subject `name`, or what its method returns."""
        self._open(name, path)
        found = getattr(self.lm, method)
        return found(*arguments) if callable(found) else found

    def divide(self, name: str, path: Path | None, kind: Kind, requests: Sequence[Request], size: int) -> list[list[int]]:
        """See `wfray.evals.slices.divide`."""
        self._open(name, path)
        return divide(self.lm, kind, requests, size)

    def answer(self, name: str, path: Path | None, kind: Kind, requests: Sequence[Request]) -> list[Answer]:
        """Answers to requests, in their order, as `DividedLM` keeps them."""
        self._open(name, path)
        instances = [Instance(kind, {}, tuple(request), number) for number, request in enumerate(requests)]
        answers = list(getattr(self.lm, kind)(instances))
        if isinstance(self.lm, DiffusionLM) and kind != "generate_until":
            return with_errors(answers, self.lm.standard_errors[-len(answers) :])
        return answers

    def _open(self, name: str, path: Path | None) -> None:
        """Load the subject in place of the last one, unless it is there."""
        if self.name != name:
            self.lm = None
            self.lm, self.name = open_lm(self.config, name, path), name


class Fleet:
    """The job's side of the actors, for one subject after the other; implements `Workers`."""

    def __init__(self, config: EvaluateConfig) -> None:
        assert config.harness is not None
        resources: dict[str, Any] = {
            "num_cpus": config.harness.num_cpus,
            "num_gpus": min(1, gpus_for("evaluate")),
            "resources": resources_of("evaluate"),
        }
        actor: Any = ray.remote(Answerer).options(**resources, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
        self.actors = [actor.remote(config) for _ in range(config.harness.num_actors)]
        self.subject: tuple[str, Path | None] = ("", None)

    def open(self, name: str, path: Path | None) -> None:
        """From now on questions are about this subject."""
        self.subject = (name, path)

    def ask(self, name: str, *arguments: Any) -> Any:
        """See `Workers`."""
        return wait(self.actors[0].ask.remote(*self.subject, name, *arguments))

    def divide(self, kind: Kind, requests: Sequence[Request], size: int) -> list[list[int]]:
        """See `Workers`."""
        return wait(self.actors[0].divide.remote(*self.subject, kind, list(requests), size))

    def answers(self, kind: Kind, slices: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Answer]]]:
        """See `Workers`; every actor has one slice at a time."""
        idle, waiting = list(self.actors), list(enumerate(slices))
        working: dict[ray.ObjectRef, tuple[int, Any]] = {}
        while waiting or working:
            while idle and waiting:
                actor, (number, requests) = idle.pop(), waiting.pop(0)
                working[actor.answer.remote(*self.subject, kind, list(requests))] = (number, actor)
            ready, _ = ray.wait(list(working))
            number, actor = working.pop(ready[0])
            idle.append(actor)
            yield number, wait(ready[0])


def run_harness(config: EvaluateConfig, inputs: dict[str, Path], directory: Path, report: Report) -> HarnessScores:
    """All tasks for all subjects; what a killed attempt left in `directory` is gone on from.

    Args:
        config: the evaluation's.
        inputs: path of each subject that refers to a stage or file.
        directory: gets a folder a subject.
        report: called with the share of the whole that is done, and what is going on.

    Raises:
        ValueError: a task, file or model cannot be used.
    """
    harness = config.harness
    assert harness is not None
    if harness.fetch:
        fetch(list(sets.RELEASES), sets.cache())
    fleet, share = Fleet(config), 1 / len(config.subjects)
    for number, subject in enumerate(config.subjects):
        folder, begun = directory / subject.name, number * share
        if (folder / RESULTS).exists():
            # An attempt that was killed in between may have left them.
            remove(folder / "answers")
            continue
        remove_partials(folder)
        fleet.open(subject.name, inputs.get(subject.name))
        say = subject_report(report, subject.name, begun, share)
        lm = DividedLM(fleet, folder / "answers", harness.slice_requests, say)
        results = run_tasks(lm, harness)
        save(results, description(subject) | monte_carlo(subject, lm.standard_errors), folder)
        remove(folder / "answers")
    subjects = [summary(subject.name, subject.kind, directory / subject.name) for subject in config.subjects]
    return HarnessScores(subjects=subjects, comparisons=compared(harness.compare, directory))


def subject_report(report: Report, name: str, begun: float, share: float) -> Report:
    """Progress of one subject as part of the whole."""

    def say(done: float, kind: str) -> None:
        report(begun + share * done, f"{name}: {kind}, {done:.0%}")

    return say


def monte_carlo(subject: AnySubject, errors: list[float]) -> dict[str, Any]:
    """How exact a diffusion student's log-likelihoods are."""
    if not isinstance(subject, DiffusionSubject):
        return {}
    return {"monte_carlo": {"log_likelihoods": len(errors), "mean_standard_error_nats": fmean(errors) if errors else None}}


def description(subject: AnySubject) -> dict[str, Any]:
    """What stands in lm-eval's results for the model."""
    model = {
        "original": "hf",
        "student": "wrinklefree",
        "diffusion": "wrinklefree-diffusion",
        "hub": "hf",
        "gguf": "wrinklefree-gguf",
        "endpoint": "local-completions",
    }
    reference = subject.reference if isinstance(subject, Subject | DiffusionSubject) else None
    arguments = {**subject.model_dump(mode="json", exclude={"name", "kind"}), **({"reference": reference} if reference else {})}
    return {"model": model[subject.kind], "model_args": arguments, "model_name": subject.name}
