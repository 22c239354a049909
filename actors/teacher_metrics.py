"""A teacher replica's figures on Ray's metrics endpoint, from where Prometheus and the dashboard have them."""

import threading
import time

from ray.util.metrics import Counter, Gauge

from wfray.teacher.service import TeacherService

COUNTERS = {
    "requests": "requests answered",
    "tokens": "tokens answered",
    "computed_tokens": "tokens of forward passes",
    "passes": "forward passes",
    "cache_hits": "rows read from the cache",
    "cache_misses": "rows that the cache did not have",
    "cache_damaged": "damaged cache entries, deleted and made again",
}
GAUGES = {
    "queue": "requests that wait for their pass",
    "tokens_per_second": "tokens answered a second, over the last half minute",
    "cache_bytes": "bytes of the cache",
}
INTERVAL_SECONDS = 1.0


class ReplicaMetrics:
    """Copies the figures of a service as `wfray_teacher_<name>`, once a second, in a thread of its own."""

    def __init__(self, application: str, service: TeacherService) -> None:
        self.service, self.last = service, dict.fromkeys(COUNTERS, 0)
        self.tags = {"application": application, "teacher": service.engine.fingerprint.digest}
        keys = tuple(self.tags)
        self.counters = {name: Counter(f"wfray_teacher_{name}", f"Teacher: {text}", keys) for name, text in COUNTERS.items()}
        self.gauges = {name: Gauge(f"wfray_teacher_{name}", f"Teacher: {text}", keys) for name, text in GAUGES.items()}
        threading.Thread(target=self._run, daemon=True, name="metrics").start()

    def _run(self) -> None:
        while True:
            figures = self.service.status()
            for name, gauge in self.gauges.items():
                gauge.set(figures[name], self.tags)
            for name, counter in self.counters.items():
                if grown := figures[name] - self.last[name]:
                    counter.inc(grown, self.tags)
                    self.last[name] = figures[name]
            time.sleep(INTERVAL_SECONDS)
