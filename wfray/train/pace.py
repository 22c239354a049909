"""How fast the loop runs, and how much of the time it waits."""

import time

from wfray.train.feed import Feed


class Pace:
    """A stopwatch for steps."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.start()

    def start(self) -> None:
        """Begin a step."""
        feed = self.feed
        self.started, self.waited = time.perf_counter(), (feed.data_seconds, feed.teacher_seconds, feed.mixing_seconds)

    def figures(self, tokens: int) -> dict[str, float]:
        """Tokens a second of a step of `tokens`, and the parts of its time spent waiting for data and the teacher, and learning weights."""
        seconds = time.perf_counter() - self.started
        data = (self.feed.data_seconds - self.waited[0]) / seconds
        teacher = (self.feed.teacher_seconds - self.waited[1]) / seconds
        return {
            "tokens_per_second": round(tokens / seconds, 1),
            "data_wait_fraction": round(data, 4),
            "teacher_wait_fraction": round(teacher, 4),
            **({"mixing_fraction": round((self.feed.mixing_seconds - self.waited[2]) / seconds, 4)} if self.feed.mixer else {}),
        }
