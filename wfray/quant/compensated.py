"""Compensated rounding: ternary codes of a matrix whose errors cancel over the inputs that the matrix really gets.

Rounding each weight by itself (`ternary.py`) leaves an error of half a matrix's norm. Here x [T, C] are inputs, already as the
layer quantizes them, and y [T, D] the outputs that are wanted, which may be another model's. Of both only the moments
`H = x^T x` [C, C] and `X = y^T x` [D, C] are kept. Then

1. refit, `V = argmin |x V^T - y|^2 + r |V - W|^2`: the float matrix near the original W that answers best to these inputs;
2. round V column by column, from the input of most energy to that of least, and take each column's error out of the columns still to be
   rounded, by the inverse Cholesky factor of H (GPTQ, arXiv 2210.17323);
3. set the scale to the best one for those codes, `<codes, X> / <codes, codes H>`, and round once more with it;
4. keep each weight as it stood when it was rounded, moved so far that plain rounding gives the same codes and the same scale.

So the result is a latent matrix like any other: a BitLinear computes with it, and training goes on from it. Moments and rounding are
float32 whatever the model computes in: rounded to bfloat16, the moments of a feature a hundred times as strong as the mean are off by as
much as the damping adds, and have negative eigenvalues. Systems are solved in float64.

Cost: O(T C (C + D)) for the moments, O(C^3) for the factors, O(D C^2) for the rest.
"""

import torch
from torch import Tensor

from wfray.quant.int8 import fake_quantize_activations

NUM_ROUNDS = 3
BLOCK = 32
"""Columns whose errors are taken out of the rest at once."""
NEAREST_NONZERO, FARTHEST_ZERO = 0.55, 0.45
"""Bounds of latent weights in units of the scale; plain rounding divides at 0.5."""
LEAST_BEYOND = 1e-3
"""What any nonzero weight stands beyond its bound at least, so that there is something to stretch."""


class Moments:
    """Sums over calibration tokens for one set of inputs and the matrices that read it."""

    def __init__(self, num_features: int, num_outputs: int, device: torch.device | None = None) -> None:
        """Args: widths C and D (of all matrices together), where the sums are kept."""
        self.inputs_CC = torch.zeros(num_features, num_features, device=device)
        self.cross_DC = torch.zeros(num_outputs, num_features, device=device)

    def add(self, x_TC: Tensor, y_TD: Tensor, weight_T1: Tensor) -> None:
        """Add tokens: inputs, wanted outputs and how much each token's error counts."""
        weighted_TC = fake_quantize_activations(x_TC.float()) * weight_T1
        self.inputs_CC += weighted_TC.T @ weighted_TC
        self.cross_DC += (y_TD * weight_T1).T @ weighted_TC


class Compensation:
    """What all matrices that read the same inputs share: the order of the columns and the factors."""

    def __init__(self, inputs_CC: Tensor, ridge: float, damping: float) -> None:
        """Factor the moments.

        Args:
            inputs_CC: H.
            ridge: r of the refit, in units of the mean of H's diagonal.
            damping: what is added to H's diagonal for the rounding, in the same units.

        Raises:
            ValueError: the inputs are all zero.
        """
        energy_C = inputs_CC.diagonal()
        if not energy_C.any():
            raise ValueError("compensated rounding: the calibration inputs of a matrix are all zero; calibrate with more or other text")
        self.inputs_CC = inputs_CC
        self.ridge = ridge * energy_C.mean().double()
        self.order = energy_C.argsort(descending=True)
        ordered = inputs_CC[self.order][:, self.order].double()
        ordered.diagonal().add_(damping * energy_C.mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
        self.factor_CC = torch.linalg.cholesky(inverse, upper=True).float()
        """U with `H^-1 = U^T U`: row j says how column j's error is spread."""

    def latents(self, weights: list[Tensor], cross: list[Tensor]) -> list[Tensor]:
        """Latent weights (float32) whose plain rounding answers best to the inputs; see the module docstring.

        Args:
            weights: the original matrices, [D, C] each.
            cross: X of each.

        Raises:
            ValueError: no codes answer to what is wanted.
        """
        heights = [len(weight) for weight in weights]
        cross_DC = torch.cat(cross)
        fitted_DC = self.refit(torch.cat(weights).float(), cross_DC)
        scales = torch.stack([matrix.abs().mean() for matrix in fitted_DC.split(heights)])
        by_row = torch.tensor(heights, device=scales.device)
        for _ in range(NUM_ROUNDS - 1):
            codes_DC, _ = self.round(fitted_DC, scales.repeat_interleave(by_row))
            scales = self.best_scales(codes_DC, cross_DC, heights)
        rounded = zip(*(part.split(heights) for part in self.round(fitted_DC, scales.repeat_interleave(by_row))), strict=True)
        return [settle(codes, weight, scale) for (codes, weight), scale in zip(rounded, scales, strict=True)]

    def best_scales(self, codes_DC: Tensor, cross_DC: Tensor, heights: list[int]) -> Tensor:
        """Of each matrix the scale with which its codes answer best, step 3."""
        agreement_D = (codes_DC * cross_DC).sum(dim=1)
        energy_D = (codes_DC * (codes_DC @ self.inputs_CC)).sum(dim=1)
        pairs = zip(agreement_D.split(heights), energy_D.split(heights), strict=True)
        scales = torch.stack([agreement.sum() / energy.sum() for agreement, energy in pairs])
        if not (scales > 0).all():
            raise ValueError("compensated rounding found no scale for a matrix: calibrate with more text, or raise rounding.ridge")
        return scales

    def refit(self, weight_DC: Tensor, cross_DC: Tensor) -> Tensor:
        """V, step 1."""
        missing_DC = (cross_DC - weight_DC @ self.inputs_CC).double()
        regular_CC = self.inputs_CC.double()
        regular_CC.diagonal().add_(self.ridge)
        return weight_DC + torch.linalg.solve(regular_CC, missing_DC, left=False).float()

    def round(self, weight_DC: Tensor, scale_D: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (as floats) and the weights as they stood when they were rounded, step 2; the scale of each row is given."""
        left_CD = weight_DC[:, self.order].T.contiguous()
        codes_CD = torch.empty_like(left_CD)
        for start in range(0, len(left_CD), BLOCK):
            stop = min(start + BLOCK, len(left_CD))
            errors = torch.empty_like(left_CD[start:stop])
            for column in range(start, stop):
                codes_D = torch.div(left_CD[column], scale_D, out=codes_CD[column]).round_().clamp_(-1, 1)
                error_D = torch.addcmul(left_CD[column], codes_D, scale_D, value=-1, out=errors[column - start])
                error_D /= self.factor_CC[column, column]
                left_CD[column + 1 : stop].addr_(self.factor_CC[column, column + 1 : stop], error_D, alpha=-1)
            left_CD[stop:] -= self.factor_CC[start:stop, stop:].T @ errors
        back = self.order.argsort()
        return codes_CD[back].T.contiguous(), left_CD[back].T.contiguous()


def settle(codes: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The matrix near `weight` of which plain rounding makes `codes` with `scale`, step 4.

    Zeros stay within 0.45 of the scale. The others stand 0.55 of it from zero, and what they stand farther is stretched until the
    mean of all |w| is the scale, which always can be: with all bounds reached that mean would be less.
    """
    is_zero = codes == 0
    zeros = weight.clamp(-FARTHEST_ZERO * scale, FARTHEST_ZERO * scale)
    beyond = (weight.abs() - NEAREST_NONZERO * scale).clamp(min=LEAST_BEYOND * scale).masked_fill(is_zero, 0.0)
    num_nonzero = (~is_zero).sum()
    wanted = scale * codes.numel() - zeros.abs().masked_fill(~is_zero, 0.0).sum() - NEAREST_NONZERO * scale * num_nonzero
    return torch.where(is_zero, zeros, codes * (NEAREST_NONZERO * scale + beyond * (wanted / beyond.sum())))
