"""The student's figures on Ray's metrics endpoint, from where Prometheus and the dashboard have them."""

from collections.abc import Callable
from typing import Any

from ray.util.metrics import Counter, Gauge

GAUGES = {
    "tokens_per_second": "tokens trained on a second",
    "loss": "of the last step",
    "data_wait_fraction": "share of the time that went into waiting for data",
    "teacher_wait_fraction": "share of the time that went into waiting for the teacher",
    "progress": "share of the stage that is done",
    "num_workers": "workers that share the batch",
}


def with_metrics(log: Callable[..., None], run: str, stage: str) -> Callable[..., None]:
    """A function that logs a row of figures with `log`, and shows them as `wfray_student_<name>` of `run` and `stage`."""
    tags = {"run": run, "stage": stage}
    gauges = {name: Gauge(f"wfray_student_{name}", f"Student: {text}", tuple(tags)) for name, text in GAUGES.items()}
    tokens = Counter("wfray_student_tokens", "Student: tokens trained on by this attempt", tuple(tags))
    last: list[int] = []

    def log_and_show(**row: Any) -> None:
        log(**row)
        for name, gauge in gauges.items():
            if name in row:
                gauge.set(row[name], tags)
        if last:
            tokens.inc(row["tokens"] - last.pop(), tags)
        last.append(row["tokens"])

    return log_and_show
