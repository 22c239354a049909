"""The documents of a packed batch, found once and used by every layer and by the losses that compare positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int, int]
"""(row, start, end): half-open positions of one row."""


@dataclass(frozen=True)
class Segments:
    """The documents of a packed batch as spans, row by row, covering every position once."""

    spans: tuple[Span, ...]
    """Padding included."""
    documents: tuple[Span, ...]
    """The same without padding."""

    @classmethod
    def of(cls, segment_ids_BT: Tensor) -> "Segments":
        """Find the runs of equal ids in each row."""
        ids_BT = segment_ids_BT.cpu()
        num_rows, length = ids_BT.shape
        edges: list[list[int]] = [[0] for _ in range(num_rows)]
        for row, before in torch.nonzero(ids_BT[:, 1:] != ids_BT[:, :-1]).tolist():
            edges[row].append(before + 1)
        spans = [(row, start, end) for row, starts in enumerate(edges) for start, end in zip(starts, [*starts[1:], length], strict=True)]
        is_padding = (ids_BT == 0).tolist()
        return cls(tuple(spans), tuple(span for span in spans if not is_padding[span[0]][span[1]]))

    @classmethod
    def whole_rows(cls, num_rows: int, length: int) -> "Segments":
        """Every row is one document."""
        spans = tuple((row, 0, length) for row in range(num_rows))
        return cls(spans, spans)

    @property
    def longest(self) -> int:
        """Tokens of the longest span."""
        return max(end - start for _, start, end in self.spans)
