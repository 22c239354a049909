"""Conversion against a plain, slow student written from the paper's formulas."""

import pytest
import torch
from torch import Tensor, nn

from tests.wfray.student.conftest import tiny_model
from wfray.config.convert import Subln
from wfray.quant import BitLinear, set_lambda
from wfray.student import convert, hidden_states
from wfray.student.convert import measure_input_rms
from wfray.student.families import FAMILIES, PROJECTIONS


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_quantization_and_subln_the_student_is_the_original(family: str, packed: dict[str, Tensor]) -> None:
    wanted = hidden_states(tiny_model(family), packed)
    student = convert(tiny_model(family), Subln(placement="none"))
    set_lambda(student, 0.0)
    torch.testing.assert_close(hidden_states(student, packed), wanted, rtol=1e-5, atol=1e-5)


class SlowBitLinear(nn.Module):
    """One token at a time, in floats."""

    def __init__(self, linear: nn.Linear, normed: bool) -> None:
        super().__init__()
        self.linear, self.normed = linear, normed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        scale = weight.abs().mean()
        ternary = scale * (weight / (scale + 1e-5)).round().clamp(-1, 1)
        tokens = []
        for token in x.reshape(-1, x.shape[-1]):
            if self.normed:
                token = token / (token.square().mean() + 1e-5).sqrt()
            largest = token.abs().max()
            token = largest / 127 * (127 / (largest + 1e-5) * token).round().clamp(-128, 127)
            out = ternary @ token
            tokens.append(out if self.linear.bias is None else out + self.linear.bias)
        return torch.stack(tokens).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("placement", ["output", "all", "none"])
def test_quantized_student_equals_the_slow_reference(family: str, placement: str, packed: dict[str, Tensor]) -> None:
    student = convert(tiny_model(family), Subln(placement=placement, init="ones"))  # type: ignore[arg-type]
    slow = tiny_model(family)
    normed = {"output": ("o_proj", "down_proj"), "all": PROJECTIONS, "none": ()}[placement]
    for layer in slow.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name in [name for name in PROJECTIONS if hasattr(parent, name)]:
                setattr(parent, name, SlowBitLinear(getattr(parent, name), name in normed))
    # Sums in another order can move an activation over a rounding edge, which is one part in 127 of one feature.
    difference = hidden_states(student, packed) - hidden_states(slow, packed)
    assert difference.abs().median() < 1e-5
    assert difference.abs().max() < 0.1


def test_calibrated_subln_keeps_the_scale_of_the_inputs(packed: dict[str, Tensor]) -> None:
    model = tiny_model("llama")
    inputs: dict[str, Tensor] = {}
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: inputs.update(x=args[0]))
    rms = measure_input_rms(model, Subln(), lambda: hidden_states(model, packed))
    handle.remove()
    assert rms["1.down_proj"] == pytest.approx(inputs["x"].square().mean().sqrt().item(), rel=1e-5)
    student = convert(model, Subln(), rms)
    down = student.model.layers[1].mlp.down_proj
    assert isinstance(down, BitLinear) and down.norm is not None
    assert down.norm(inputs["x"]).square().mean().sqrt().item() == pytest.approx(rms["1.down_proj"], rel=0.05)


def test_calibration_without_measurements_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration corpus"):
        convert(tiny_model("llama"), Subln(init="calibrated"))
