"""Compensated rounding: ternary codes of a matrix whose errors cancel over the inputs that the matrix really gets.

Rounding each weight by itself (`ternary.py`) leaves an error of half a matrix's norm. Here x [T, C] are inputs, already as the
layer quantizes them, and y [T, D] the outputs that are wanted, which may be another model's. Of both only the moments
`H = x^T x` [C, C] and `X = y^T x` [D, C] are kept. Then

1. refit, `V = argmin |x V^T - y|^2 + r |V - W|^2`: the float matrix near the original W that answers best to these inputs;
2. round V column by column, from the input of most energy to that of least, and take each column's error out of the columns still to be
   rounded, by the inverse Cholesky factor of H (GPTQ, arXiv 2210.17323);
3. set the scale to the best one for those codes, `<codes, X> / <codes, codes H>`, and round once more with it;
4. keep each weight as it stood when it was rounded, moved so far that plain rounding gives the same codes and the same scale.

So the result is a latent matrix like any other: a BitLinear computes with it, and training goes on from it. H and V are float64
where systems are solved; rounding is float32. Cost: O(C^3) a matrix of inputs and O(D C^2) a matrix.
"""

import torch
from torch import Tensor

from wfray.quant.int8 import fake_quantize_activations

NUM_ROUNDS = 3
BLOCK = 64
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
        x_TC = fake_quantize_activations(x_TC.float()) * weight_T1
        self.inputs_CC += x_TC.T @ x_TC
        self.cross_DC += (y_TD.float() * weight_T1).T @ x_TC


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

    def latent(self, weight_DC: Tensor, cross_DC: Tensor) -> Tensor:
        """Latent weights (float32) whose plain rounding answers best to the inputs; see the module docstring.

        Args:
            weight_DC: the original matrix.
            cross_DC: X.

        Raises:
            ValueError: no codes answer to what is wanted.
        """
        fitted_DC = self.refit(weight_DC.float(), cross_DC)
        scale = fitted_DC.abs().mean()
        for _ in range(NUM_ROUNDS - 1):
            codes_DC, _ = self.round(fitted_DC, scale)
            scale = (codes_DC * cross_DC).sum() / (codes_DC * (codes_DC @ self.inputs_CC)).sum()
            if not scale > 0:
                raise ValueError("compensated rounding found no scale for a matrix: calibrate with more text, or raise rounding.ridge")
        return settle(*self.round(fitted_DC, scale), scale)

    def refit(self, weight_DC: Tensor, cross_DC: Tensor) -> Tensor:
        """V, step 1."""
        missing_DC = (cross_DC - weight_DC @ self.inputs_CC).double()
        regular_CC = self.inputs_CC.double()
        regular_CC.diagonal().add_(self.ridge)
        return weight_DC + torch.linalg.solve(regular_CC, missing_DC, left=False).float()

    def round(self, weight_DC: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (as floats) and the weights as they stood when they were rounded, step 2."""
        left_CD = weight_DC[:, self.order].T.contiguous()
        codes_CD = torch.empty_like(left_CD)
        for start in range(0, len(left_CD), BLOCK):
            stop = min(start + BLOCK, len(left_CD))
            errors = torch.empty_like(left_CD[start:stop])
            for column in range(start, stop):
                codes_CD[column] = (left_CD[column] / scale).round_().clamp_(-1, 1)
                errors[column - start] = (left_CD[column] - codes_CD[column] * scale) / self.factor_CC[column, column]
                left_CD[column + 1 : stop] -= self.factor_CC[column, column + 1 : stop, None] * errors[column - start]
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
