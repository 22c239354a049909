"""Making rows long enough for a block type, and all norms share one eps, without changing the function.

TQ2_0, TQ1_0 and Q6_K need rows that are multiples of 256, I2_S of 128. Where they are not (SmolLM2: hidden 576), the hidden axis is widened
with zeros to a multiple that is a whole number of heads in the same grouping (576 -> 768: 9 heads of 64 become 12, 3 key-value
heads become 4), and the function stays the same:

- An RMSNorm over a widened axis sees its mean square times r = 576/768. With weight * sqrt(r) and eps * r it gives
  `x / sqrt(r ms + r eps) * sqrt(r) w = x / sqrt(ms + eps) * w`; widened channels are 0.
- Added heads have q = k = v = 0, so they mix zeros; their columns of o_proj are zero.
- A file has one eps for all norms. A SubLN of another eps, or over an axis that is widened by another ratio, is made right by
  scaling its input, which v_proj or up_proj produces linearly: `s x / sqrt(s^2 ms' + eps_file)` equals the norm wanted for
  `s^2 = eps_file / (eps_wanted * ratio)`. The factor goes into that matrix's scale before its one rounding.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wfray.export.llama_shape import LlamaShape


@dataclass(frozen=True)
class Widening:
    """The student's own shape, the one in the file, and the factors that keep the function as it was."""

    shape: LlamaShape
    widened: LlamaShape
    """With the eps of the file."""
    subln_eps: float

    @property
    def hidden_ratio(self) -> float:
        """Width of the hidden axis over its width in the file."""
        return self.shape.hidden / self.widened.hidden

    @property
    def inner_ratio(self) -> float:
        """The same of the MLP's inner axis."""
        return self.shape.intermediate / self.widened.intermediate

    @property
    def value_gain(self) -> float:
        """The factor on v_proj."""
        return math.sqrt(self.widened.norm_eps / (self.subln_eps * self.hidden_ratio))

    @property
    def up_gain(self) -> float:
        """The factor on up_proj."""
        return math.sqrt(self.widened.norm_eps / (self.subln_eps * self.inner_ratio))


def widen(shape: LlamaShape, subln_eps: float, hidden_multiple: int = 1, inner_multiple: int = 1) -> Widening:
    """The smallest shape whose axes are multiples of these numbers, with whole heads in the same grouping."""
    group = shape.num_heads // shape.num_kv_heads
    step = math.lcm(hidden_multiple, group * shape.head_dim) if shape.hidden % hidden_multiple else shape.hidden
    hidden = math.ceil(shape.hidden / step) * step
    widened = replace(
        shape,
        hidden=hidden,
        intermediate=math.ceil(shape.intermediate / inner_multiple) * inner_multiple,
        num_heads=hidden // shape.head_dim,
        num_kv_heads=hidden // shape.head_dim // group,
        norm_eps=shape.norm_eps * shape.hidden / hidden,
    )
    return Widening(shape, widened, subln_eps)


def pad(array: NDArray, size: tuple[int, ...]) -> NDArray:
    """`array` widened with zeros at the end of each axis."""
    return np.pad(array, [(0, wanted - given) for wanted, given in zip(size, array.shape, strict=True)])
