"""Compiled decoder layers compute what eager ones do, and are compiled once whatever the documents or lambda."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.wfray.student.conftest import tiny_model
from wfray.config.convert import Subln
from wfray.quant import set_lambda
from wfray.student import convert, run_body
from wfray.student.compiled import compile_layers

LENGTH = 32


def batch(first_document: int) -> dict[str, Tensor]:
    """Two documents in one row."""
    positions = torch.arange(LENGTH)
    segments = 1 + (positions >= first_document).int()
    return {
        "input_ids": (positions * 7 % 50)[None],
        "position_ids": torch.where(positions >= first_document, positions - first_document, positions)[None],
        "segment_ids": segments[None],
    }


def outputs_and_gradients(model: torch.nn.Module, packed: dict[str, Tensor]) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        output = run_body(model, packed, with_layers=True, qkv_layer=1)  # type: ignore[arg-type]
    model.zero_grad()
    direction = torch.linspace(-1, 1, output.hidden_BTC.numel()).sin().view_as(output.hidden_BTC)
    (output.hidden_BTC.float() * direction).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [output.hidden_BTC.float(), output.layers[1].float(), output.qkv[0].float(), *gradients]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_student_computes_what_the_eager_one_does_and_is_compiled_once() -> None:
    eager, compiled = (convert(tiny_model("llama"), Subln(init="ones")).train() for _ in range(2))
    compile_layers(compiled)
    for strength in (1.0, 0.5):
        for model in (eager, compiled):
            set_lambda(model, strength)
        wanted, found = (outputs_and_gradients(model, batch(11)) for model in (eager, compiled))
        assert len(wanted) == len(found)
        for a, b in zip(wanted, found, strict=True):
            # bfloat16 products of differently rounded inputs: an activation may fall on the next of 127 levels.
            assert (a - b).norm() <= 0.05 * a.norm()
    counters.clear()
    outputs_and_gradients(compiled, batch(20))
    set_lambda(compiled, 0.75)
    outputs_and_gradients(compiled, batch(11))
    assert not counters["stats"], "another cut into documents, or another lambda, must not compile anything anew"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_code_compiled_anew_computes_the_same_to_the_bit() -> None:
    results = []
    for _ in range(2):
        torch._dynamo.reset()
        model = convert(tiny_model("llama"), Subln(init="ones")).train()
        compile_layers(model)
        results.append(outputs_and_gradients(model, batch(11)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
