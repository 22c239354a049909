"""What a replica has done: counts since it started, and tokens a second of late."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WINDOW_SECONDS = 30.0
"""Over which speed is measured."""


class Meter:
    """Counts; safe to use from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.started = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.tokens_of: Counter[str] = Counter()
        self.busy_seconds = 0.0
        self.recent: deque[tuple[float, int]] = deque()

    def add(self, name: str, number: int = 1) -> None:
        """Count something."""
        with self.lock:
            self.counts[name] += number

    def answered(self, client: str, num_tokens: int) -> None:
        """Count an answer."""
        now = time.monotonic()
        with self.lock:
            self.counts.update(requests=1, tokens=num_tokens)
            self.tokens_of[client] += num_tokens
            self.recent.append((now, num_tokens))
            self._forget(now)

    @contextmanager
    def passing(self, num_passes: int, num_tokens: int) -> Iterator[None]:
        """Time forward passes."""
        started = time.monotonic()
        yield
        with self.lock:
            self.counts.update(passes=num_passes, computed_tokens=num_tokens)
            self.busy_seconds += time.monotonic() - started

    def figures(self) -> dict[str, Any]:
        """All of it."""
        now = time.monotonic()
        with self.lock:
            self._forget(now)
            uptime = now - self.started
            names = ("requests", "tokens", "passes", "computed_tokens", "cache_hits", "cache_misses", "cache_damaged", "refused")
            return {
                **{name: self.counts[name] for name in names},
                "tokens_per_second": round(sum(number for _, number in self.recent) / min(uptime, WINDOW_SECONDS), 1),
                "busy_fraction": round(self.busy_seconds / uptime, 4),
                "tokens_by_client": dict(self.tokens_of),
            }

    def _forget(self, now: float) -> None:
        while self.recent and self.recent[0][0] < now - WINDOW_SECONDS:
            self.recent.popleft()
