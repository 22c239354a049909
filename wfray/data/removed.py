"""The count of what cleaning left out."""

from collections import defaultdict
from collections.abc import Iterable

from pydantic import BaseModel

NUM_EXAMPLES = 3


class Removed(BaseModel):
    """Documents left out for one reason."""

    documents: int = 0
    """For `damaged_file`: files whose rest could not be read."""
    characters: int = 0
    """0 where there was no text to count."""
    examples: list[str] = []
    """The first of them, `file#number`."""

    def __add__(self, other: "Removed") -> "Removed":
        return Removed(
            documents=self.documents + other.documents,
            characters=self.characters + other.characters,
            examples=(self.examples + other.examples)[:NUM_EXAMPLES],
        )


def merge_removed(counts: Iterable[dict[str, Removed]]) -> dict[str, Removed]:
    """The sum of what several units left out, by reason."""
    merged: dict[str, Removed] = defaultdict(Removed)
    for count in counts:
        for reason, removed in count.items():
            merged[reason] = merged[reason] + removed
    return dict(sorted(merged.items()))
