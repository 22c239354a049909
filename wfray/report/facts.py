"""What a run directory says: its stages by kind, their metrics, the scores, the export and the answers.

A stage's kind follows from its configuration's keys, not from its name, which the user chooses. What a run does not have is None or empty;
what is there but not of the expected form is an error.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from wfray.evals import HarnessScores, Scores
from wfray.runs import Manifest, read_metrics, stage_manifests

Kind = Literal["pack", "convert", "train", "export", "evaluate", "serve", "other"]
KIND_OF_KEY: dict[str, Kind] = {
    "objectives": "train",
    "sources": "pack",
    "subln": "convert",
    "formats": "export",
    "subjects": "evaluate",
    "application": "serve",
}
TERMS = {
    "loss": "loss",
    "cross_entropy": "cross-entropy",
    "logits_kl": "KL of the logits",
    "concrete_score": "concrete scores",
    "certainty": "entropy where right",
    "alignment": "layer alignment",
    "attention_relations": "attention relations",
    "learning_rate": "learning rate",
    "lambda": "quantization λ",
    "gradient_norm": "gradient norm",
}
"""Columns of a training stage's metrics that are drawn, and what people call them."""


@dataclass(frozen=True)
class StageFacts:
    """One stage."""

    name: str
    manifest: Manifest
    directory: Path

    @property
    def kind(self) -> Kind:
        """What it does."""
        return next((kind for key, kind in KIND_OF_KEY.items() if key in self.manifest.config), "other")

    @property
    def figures(self) -> dict[str, Any]:
        """What it measured."""
        return self.manifest.figures

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Its metrics."""
        return read_metrics(self.directory / "metrics.jsonl")

    @property
    def training_rows(self) -> list[dict[str, Any]]:
        """Its metrics that belong to optimizer steps."""
        return [row for row in self.rows if "step" in row]

    @property
    def terms(self) -> list[str]:
        """The drawn columns that it has, in the order of `TERMS`."""
        return [name for name in TERMS if any(name in row for row in self.training_rows)]

    def series(self, name: str) -> list[tuple[float, float]]:
        """A column over tokens."""
        return [(row["tokens"], row[name]) for row in self.training_rows if name in row]


@dataclass(frozen=True)
class RunFacts:
    """One run."""

    directory: Path
    stages: list[StageFacts]

    @classmethod
    def read(cls, run: Path) -> "RunFacts":
        """Read a run directory.

        Raises:
            ValueError: it does not exist or holds no stage.
        """
        manifests = stage_manifests(run)
        if not manifests:
            raise ValueError(f"{str(run)!r} holds no stage with a manifest: name a run directory, for example runs/quickstart")
        return cls(run, [StageFacts(name, manifest, run / name) for name, manifest in manifests.items()])

    def complete(self, kind: Kind) -> list[StageFacts]:
        """The complete stages of a kind, in the order in which they started."""
        return [stage for stage in self.stages if stage.kind == kind and stage.manifest.status == "complete"]

    def last(self, kind: Kind) -> StageFacts | None:
        """The newest complete stage of a kind."""
        return next(reversed(self.complete(kind)), None)

    @property
    def unfinished(self) -> list[StageFacts]:
        """Stages that failed or were interrupted."""
        return [stage for stage in self.stages if stage.manifest.status != "complete"]

    @property
    def training(self) -> list[StageFacts]:
        """Training stages that have made at least one step."""
        return [stage for stage in self.stages if stage.kind == "train" and stage.training_rows]

    @cached_property
    def scores(self) -> Scores | None:
        """The newest evaluation on a corpus."""
        found = [stage for stage in self.complete("evaluate") if "perplexity" in stage.figures]
        return Scores.read(found[-1].directory) if found else None

    @cached_property
    def harness(self) -> HarnessScores | None:
        """The newest evaluation with lm-eval."""
        found = [stage for stage in self.complete("evaluate") if "harness" in stage.figures]
        return HarnessScores.read(found[-1].directory) if found else None

    @cached_property
    def answers(self) -> list[dict[str, Any]]:
        """What the served models answered."""
        stage = self.last("serve")
        return json.loads((stage.directory / "samples.json").read_text(encoding="utf-8")) if stage else []

    @cached_property
    def cost(self) -> dict[str, Any] | None:
        """Wall time and peak memory of the whole pipeline, as it recorded them."""
        path = self.directory / "pipeline.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def name_of(self, identity: str) -> str | None:
        """The stage of this run that has this identity, or the output that has this hash."""
        for stage in self.stages:
            if stage.manifest.identity == identity:
                return stage.name
            for output in stage.manifest.outputs:
                if output.sha256 == identity:
                    return f"{stage.name}/{output.path}"
        return None
