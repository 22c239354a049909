"""lm-eval's model whose requests others answer: divided into slices, each answer kept on disk as it comes.

lm-eval itself builds the requests and scores the answers, in one process and on all items, so results are its own whoever answered.
An answer file is named by what was asked; a job that goes on after it was killed asks for the slices that have none.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from wfray.evals.slices import Kind, Request
from wfray.runs import write_aside

Answer = float | str | tuple[float | bool, ...]


class Workers(Protocol):
    """Whoever holds the model."""

    def divide(self, kind: Kind, requests: Sequence[Request], size: int) -> list[list[int]]:
        """See `wfray.evals.slices.divide`."""

    def answers(self, kind: Kind, slices: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Answer]]]:
        """Numbers of slices and their answers, in the order in which they come."""

    def ask(self, name: str, *arguments: Any) -> Any:
        """An attribute of the model, or what its method returns."""


class DividedLM(LM):
    """See the module docstring."""

    def __init__(self, workers: Workers, kept: Path, slice_requests: int, report: Callable[[float, str], None]) -> None:
        """Answer through `workers`.

        Args:
            workers: hold the model.
            kept: directory of answers, which may hold some of an interrupted run.
            slice_requests: about how many requests are answered at a time.
            report: called with the share of a kind of requests that is answered, and its name.
        """
        super().__init__()
        self.workers, self.kept, self.slice_requests, self.report = workers, kept, slice_requests, report
        self.standard_errors: list[float] = []
        """Of all log-likelihoods so far that are estimates."""

    @property
    def tokenizer_name(self) -> str:
        """Of the model that answers."""
        return str(self.workers.ask("tokenizer_name"))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the template of the model that answers."""
        return str(self.workers.ask("apply_chat_template", chat_history, add_generation_prompt))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template itself."""
        return cast("str | None", self.workers.ask("chat_template", chat_template))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of continuations, and whether greedy decoding would produce them."""
        return cast("list[tuple[float, bool]]", self.answer("loglikelihood", requests))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of whole texts."""
        return cast("list[float]", self.answer("loglikelihood_rolling", requests))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts up to a stop sequence."""
        return cast("list[str]", self.answer("generate_until", requests))

    def answer(self, kind: Kind, instances: list[Instance]) -> list[Answer]:
        """Answers to all requests of a kind, in their order."""
        requests = [instance.args for instance in instances]
        slices = self.workers.divide(kind, requests, self.slice_requests)
        asked = [[requests[number] for number in numbers] for numbers in slices]
        files = [self.kept / f"{digest(kind, part)}.json" for part in asked]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        for done, (index, answers) in enumerate(self.workers.answers(kind, [asked[number] for number in missing]), start=1):
            with write_aside(files[missing[index]]) as aside:
                aside.write_text(json.dumps(answers), encoding="utf-8")
            self.report((len(files) - len(missing) + done) / len(files), kind)
        found: list[Answer] = [0.0] * len(requests)
        for numbers, file in zip(slices, files, strict=True):
            for number, kept in zip(numbers, json.loads(file.read_text(encoding="utf-8")), strict=True):
                found[number], errors = apart(kind, kept)
                self.standard_errors += errors
        return found


def with_errors(answers: Sequence[Any], standard_errors: Sequence[float]) -> list[Answer]:
    """Log-likelihoods as they are kept where they are estimates: each with its standard error at its end."""
    return [(*(answer if isinstance(answer, tuple) else (answer,)), error) for answer, error in zip(answers, standard_errors, strict=True)]


def apart(kind: Kind, kept: Any) -> tuple[Answer, list[float]]:
    """A kept answer as lm-eval wants it, and its standard error where it has one."""
    if kind == "loglikelihood":
        return (kept[0], kept[1]), kept[2:]
    return (kept[0], kept[1:]) if isinstance(kept, list) else (kept, [])


def digest(kind: Kind, requests: Sequence[Request]) -> str:
    """What was asked, as the name of a file."""
    return hashlib.sha256(json.dumps([kind, requests], sort_keys=True).encode()).hexdigest()[:32]
