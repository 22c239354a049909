"""Figures of one model for Prometheus: requests, tokens, seconds to the first and between tokens."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from wfray.serving.engine import Piece

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
PREFIX = "wfray_serving"


class Figures:
    """The families of all models in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter(f"{PREFIX}_answers", "Answers that were finished", ("model", "finish_reason"), registry=self.registry)
        self.rejected = self.counter("rejected", "Requests that found no room (429)")
        self.late = self.counter("late", "Answers that passed their deadline")
        self.lost = self.counter("lost", "Answers whose engine died, asked again or not")
        self.prompt = self.counter("prompt_tokens", "Tokens of prompts")
        self.cached = self.counter("cached_tokens", "Tokens of prompts that were computed before")
        self.completion = self.counter("completion_tokens", "Tokens of answers")
        self.inside = self.gauge("inside", "Requests that are answered or wait")
        self.restarts = self.gauge("engine_restarts", "Times that the engine's process was started again")
        self.first = self.histogram("first_token_seconds", "From arrival to the first piece")
        self.token = self.histogram("token_seconds", "Per token of the later pieces")

    def counter(self, name: str, text: str) -> Counter:
        """One by model."""
        return Counter(f"{PREFIX}_{name}", text, ("model",), registry=self.registry)

    def gauge(self, name: str, text: str) -> Gauge:
        """One by model."""
        return Gauge(f"{PREFIX}_{name}", text, ("model",), registry=self.registry)

    def histogram(self, name: str, text: str) -> Histogram:
        """One by model."""
        return Histogram(f"{PREFIX}_{name}", text, ("model",), buckets=SECONDS, registry=self.registry)


class Meter:
    """What happens to one model."""

    def __init__(self, figures: Figures, model: str) -> None:
        self.figures, self.model = figures, model
        self.rejected, self.late, self.lost = (family.labels(model) for family in (figures.rejected, figures.late, figures.lost))
        self.inside, self.restarts = figures.inside.labels(model), figures.restarts.labels(model)
        self.first, self.token = figures.first.labels(model), figures.token.labels(model)

    def piece(self, piece: Piece, begun: float, last: float | None) -> float:
        """Count a piece of an answer that began at `begun`, after one at `last`; returns the time of this one."""
        now = time.monotonic()
        if last is None:
            self.first.observe(now - begun)
        elif piece.num_tokens:
            self.token.observe((now - last) / piece.num_tokens)
        if piece.finish_reason and piece.counts:
            self.figures.answers.labels(self.model, piece.finish_reason).inc()
            self.figures.prompt.labels(self.model).inc(piece.counts.prompt)
            self.figures.cached.labels(self.model).inc(piece.counts.cached)
            self.figures.completion.labels(self.model).inc(piece.counts.completion)
        return now
