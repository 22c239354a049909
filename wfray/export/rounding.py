"""How engines round the activations that they multiply: int8 in blocks with one scale each, float16, or not at all.

| engine, weights                     | activations                                                    |
|-------------------------------------|----------------------------------------------------------------|
| llama.cpp, Q4_0, Q5_0 and Q8_0      | blocks of 32, step max/127, the step kept in float16 (`Q8_0`)   |
| llama.cpp, TQ2_0, TQ1_0 and Q6_K    | blocks of 256, step max/127 (`Q8_K`)                            |
| llama.cpp, F16                      | float16                                                        |
| transformers' bitnet, the student   | one block a token, step max/127                                |

Two computations that are equal but for the last bit of a float round some values to different sides, and the difference, a whole step,
moves what the next layer rounds. A rounding can therefore be told what the engine saw: where the engine's code is a valid rounding of the
value here too, up to `TOLERANCE` of a step beyond the half that rounding is always off, that code is taken. A value that differs by more is
rounded on its own, so an engine that computes something else gains nothing.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

TOLERANCE = 0.25
LEVELS = 127


class Rounding(Protocol):
    """Rounds activations [T, C], given what the engine saw at the same place, or None."""

    def __call__(self, x_TC: Tensor, seen_TC: Tensor | None) -> Tensor: ...


@dataclass(frozen=True)
class Int8Blocks:
    """Int8 with one scale for each block of a token's channels; the last block is filled up with zeros."""

    block: int | None
    """Channels; None: all."""
    half_step: bool = False
    """Whether the step is rounded to float16."""

    def __call__(self, x_TC: Tensor, seen_TC: Tensor | None) -> Tensor:
        scaled, step = self.scale(x_TC)
        codes = scaled.round()
        if seen_TC is not None:
            theirs = self.scale(seen_TC)[0].round()
            codes = torch.where((theirs - scaled).abs() <= 0.5 + TOLERANCE, theirs, codes)
        return (codes * step).flatten(1)[:, : x_TC.shape[1]]

    def scale(self, x_TC: Tensor) -> tuple[Tensor, Tensor]:
        """Values in units of the step before they are rounded, [T, blocks, K], and the step, [T, blocks, 1]."""
        block = self.block or x_TC.shape[1]
        x_TNK = functional.pad(x_TC, (0, -x_TC.shape[1] % block)).unflatten(1, (-1, block))
        largest = x_TNK.abs().amax(-1, keepdim=True)
        step = largest / LEVELS
        return x_TNK * (LEVELS / largest.clamp_min(torch.finfo(torch.float32).tiny)), step.half().float() if self.half_step else step


def half(x_TC: Tensor, seen_TC: Tensor | None) -> Tensor:
    """Float16."""
    return x_TC.half().float()


def exact(x_TC: Tensor, seen_TC: Tensor | None) -> Tensor:
    """Not at all."""
    return x_TC


ROUNDINGS: dict[str, Rounding] = {
    "Q4_0": Int8Blocks(32, half_step=True),
    "Q8_0": Int8Blocks(32, half_step=True),
    "TQ2_0": Int8Blocks(256),
    "TQ1_0": Int8Blocks(256),
    "Q6_K": Int8Blocks(256),
    "Q5_0": Int8Blocks(32, half_step=True),
    "F16": half,
}
"""llama.cpp's, by the type of the weights."""
PER_TOKEN = Int8Blocks(None)
