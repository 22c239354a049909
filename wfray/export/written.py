"""What an export holds, in bytes and weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WrittenModel:
    """A written file or directory."""

    num_bytes: int
    linear_bytes: int
    num_linear_weights: int
    """Of the student, without padding."""
    hidden: int
    hidden_stored: int
    """The width of the hidden axis as it is stored."""

    @property
    def bytes_per_linear_weight(self) -> float:
        """Stored bytes over the student's own weights, so padding counts as cost."""
        return self.linear_bytes / self.num_linear_weights
