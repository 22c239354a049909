"""Bytes that a ternary layer keeps for backward, against those of the same linear layer in bfloat16.

Work: each projection of a SmolLM2-135M layer on 2,048 tokens, under bfloat16 autocast, its ternary codes held for the step.
Counted are the distinct tensors that autograd saves, parameters left out and the weight's own low-precision form listed apart:
it belongs to the weight, not to the tokens. The headline is the layer whose ratio is worst; SubLN's are given beside it,
against an RMSNorm and a bfloat16 linear layer.

Expected: int8 codes and a float32 scale a token, (C + 4) / 2C: 0.503 at C = 576.
"""

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks import bodies
from benchmarks.harness import report
from wfray.quant import BitLinear

GOAL = 0.55
TOKENS = bodies.ROWS * bodies.LENGTH
SHAPES = {"q_proj": (576, 576), "k_proj": (576, 192), "gate_proj": (576, 1536), "down_proj": (1536, 576)}


def saved_bytes(layer: nn.Module, num_features: int) -> tuple[int, int]:
    """Bytes saved for backward: of the tokens, and of the weight's forms."""
    saved: dict[int, Tensor] = {}
    parameters = {parameter.data_ptr() for parameter in layer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(TOKENS, num_features, dtype=torch.bfloat16, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    sizes = [(tensor.shape[0], tensor.untyped_storage().nbytes()) for tensor in saved.values() if tensor.ndim]
    assert y.requires_grad
    tokens = sum(size for rows, size in sizes if rows == TOKENS)
    return tokens, sum(size for _, size in sizes) - tokens


def main() -> None:
    """Measure and report."""
    ratios, detail = {}, {}
    for name, (num_in, num_out) in SHAPES.items():
        linear = nn.Linear(num_in, num_out, bias=False)
        ternary = BitLinear(linear.weight)
        ternary.hold_codes()
        ours, ours_weight = saved_bytes(ternary, num_in)
        theirs, theirs_weight = saved_bytes(linear, num_in)
        with_norm = BitLinear(linear.weight, norm=nn.RMSNorm(num_in))
        normed = (saved_bytes(with_norm, num_in)[0], saved_bytes(nn.Sequential(nn.RMSNorm(num_in), linear), num_in)[0])
        ratios[name] = ours / theirs
        detail[name] = {
            "tokens' bytes": [ours, theirs],
            "weight's bytes": [ours_weight, theirs_weight],
            "with a norm before it": round(normed[0] / normed[1], 4),
        }
    report("qat_memory", max(ratios.values()), "x of the bf16 linear's bytes, worst projection", goal=GOAL, peers=ratios, detail=detail)


if __name__ == "__main__":
    main()
