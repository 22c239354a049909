"""What parity asks of an engine that runs an exported file: its logits, and what it put into its projections."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from wfray.export.rounding import Rounding

HEAD = "head"
NORMED = {
    "attn_norm": ("q_proj", "k_proj", "v_proj"),
    "attn_sub_norm": ("o_proj",),
    "ffn_norm": ("gate_proj", "up_proj"),
    "ffn_sub_norm": ("down_proj",),
}
"""The four norms of a layer, by llama.cpp's names, and the projections that read them."""


@dataclass(frozen=True)
class Seen:
    """One sequence in an engine."""

    logits_TV: Tensor
    inputs: dict[str, Tensor]
    """What each projection (`"<layer>.<projection>"`) and the head read, before rounding: [T, C], or more channels in a widened file."""


class Engine(Protocol):
    """An exported file, ready to run."""

    rounding: Rounding
    """Of the projections' inputs."""
    head_rounding: Rounding
    embedding_type: str
    """How the file stores the embedding: a type of llama.cpp."""

    def run(self, input_ids: list[int]) -> Seen:
        """Evaluate one sequence from its beginning."""
        ...

    def close(self) -> None:
        """Free it."""
        ...
