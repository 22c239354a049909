"""`metrics.jsonl`: one JSON object a line, appended as training goes and cut back to the checkpoint on resume."""

import json
import time
from pathlib import Path
from typing import Any, Self

from wfray.runs.files import write_aside


class MetricsLog:
    """Appends rows to a stage's `metrics.jsonl`, each flushed, so that a viewer can follow it."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Open `path`; rows with a `step` beyond `resume_step` are dropped, since they will be computed again."""
        self.path = path
        if path.exists():
            kept = [row for row in read_metrics(path) if row.get("step", 0) <= resume_step]
            with write_aside(path) as aside:
                aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a", encoding="utf-8")

    def write(self, **row: Any) -> None:
        """Append one row; `time` (Unix seconds) is added."""
        self.file.write(json.dumps({"time": round(time.time(), 3), **row}) + "\n")
        self.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a `metrics.jsonl`; a last line that was cut off by a crash is left out. Empty when absent."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows
