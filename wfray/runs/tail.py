"""Following a stage's `metrics.jsonl` while another process writes it: each read costs only what is new."""

import json
import os
from pathlib import Path
from typing import Any


class MetricsTail:
    """Reads rows as they are appended. A file that was cut back or replaced, as on resume, is read again from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode: int | None = None

    def read(self) -> list[dict[str, Any]]:
        """The complete rows that were added since the last call; empty while the file does not exist."""
        if not self.path.exists():
            # The file that follows may get the inode of the one that is gone.
            self._offset, self._inode = 0, None
            return []
        with self.path.open("rb") as file:
            self._rewind_if_replaced(file.fileno())
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _rewind_if_replaced(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._offset = 0
        self._inode = status.st_ino
