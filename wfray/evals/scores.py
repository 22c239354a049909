"""`scores.json`, the output of an evaluation: for every subject a score per source, and the texts that subjects wrote."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from wfray.evals.paired import wilson
from wfray.runs import write_json

FILE = "scores.json"


class Score(BaseModel):
    """How well a model predicts some tokens."""

    num_tokens: int
    """Predicted tokens: the first of a document has no prediction."""
    sum_nats: float

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats a token."""
        return self.sum_nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Of one token, given what stands before it in its document."""
        return math.exp(self.loss)


def total(scores: Iterable[Score]) -> Score:
    """The score over all tokens of several."""
    listed = list(scores)
    return Score(num_tokens=sum(score.num_tokens for score in listed), sum_nats=math.fsum(score.sum_nats for score in listed))


class Accuracy(BaseModel):
    """Answers to labelled examples, in the order of the corpus, as numbers of labels."""

    truth: list[int]
    answers: list[int]

    @property
    def right(self) -> list[int]:
        """1 for each example that was answered rightly, else 0."""
        return [int(answer == truth) for answer, truth in zip(self.answers, self.truth, strict=True)]

    @property
    def share(self) -> float:
        """Of right answers."""
        return sum(self.right) / len(self.truth)

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the share."""
        return wilson(sum(self.right), len(self.truth))


class Continuation(BaseModel):
    """One held-out prompt, how it really goes on, and how models go on."""

    source: str
    prompt: str
    truth: str
    """What stands in the held-out document."""
    answers: dict[str, str] = {}
    """By name of the subject."""


class SubjectScores(BaseModel):
    """One model's scores, by source in the corpus's order."""

    name: str
    kind: str
    reference: str
    sources: dict[str, Score]
    accuracy: dict[str, Accuracy] = {}
    """By source, of those whose labels were asked for."""

    @property
    def overall(self) -> Score:
        """Over all held-out tokens."""
        return total(self.sources.values())


class Scores(BaseModel):
    """The content of `scores.json`."""

    precision: str
    subjects: list[SubjectScores]
    continuations: list[Continuation] = []

    @property
    def source_names(self) -> list[str]:
        """In the corpus's order."""
        return list(self.subjects[0].sources)

    def figures(self) -> dict[str, Any]:
        """Perplexities for a manifest: subject, then source; `all` is over all tokens."""
        accuracy = {s.name: {name: round(found.share, 5) for name, found in s.accuracy.items()} for s in self.subjects if s.accuracy}
        return {
            "perplexity": {
                subject.name: {name: round(score.perplexity, 4) for name, score in (subject.sources | {"all": subject.overall}).items()}
                for subject in self.subjects
            },
            "num_tokens": self.subjects[0].overall.num_tokens,
            **({"accuracy": accuracy} if accuracy else {}),
        }

    def table(self) -> str:
        """Perplexity as text: rows are sources, columns are subjects."""
        names = [subject.name for subject in self.subjects]
        rows = [("held-out perplexity", *names)]
        rows += [(source, *(f"{s.sources[source].perplexity:,.2f}" for s in self.subjects)) for source in self.source_names]
        rows.append(("all", *(f"{subject.overall.perplexity:,.2f}" for subject in self.subjects)))
        for source in self.subjects[0].accuracy:
            found = [subject.accuracy[source] for subject in self.subjects]
            rows.append((f"{source}, % right", *(f"{100 * each.share:.1f}" for each in found)))
            rows.append(("  95% interval", *("{:.1f}-{:.1f}".format(*(100 * bound for bound in each.interval)) for each in found)))
        return aligned(rows)

    def write(self, directory: Path) -> Path:
        """Write `scores.json` into `directory`, with losses and perplexities beside the sums; returns its path."""
        tree = self.model_dump(mode="json")
        for subject, written in zip(self.subjects, tree["subjects"], strict=True):
            written["overall"] = described(subject.overall)
            written["sources"] = {name: described(score) for name, score in subject.sources.items()}
        write_json(directory / FILE, tree)
        return directory / FILE

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read `scores.json` from `directory`."""
        return cls.model_validate_json((directory / FILE).read_text(encoding="utf-8"))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, all others to the right."""
    first, *others = (max(len(row[column]) for row in rows) for column in range(len(rows[0])))
    return "\n".join("  ".join([row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))]) for row in rows)


def described(score: Score) -> dict[str, float]:
    """A score with what follows from it."""
    return {**score.model_dump(), "loss": score.loss, "perplexity": score.perplexity}
