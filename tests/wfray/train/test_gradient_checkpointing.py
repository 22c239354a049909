"""Gradient checkpointing: the same gradients from less memory, with every capture that an objective or optimizer asks for."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.wfray.student.conftest import SHAPE
from wfray.config.convert import Subln
from wfray.quant import set_lambda
from wfray.student import convert, lm_head_weight, run_body
from wfray.student.attention import NAME

WIDER = {**SHAPE, "num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 256, "max_position_embeddings": 256}


def student(family: str, strength: float, checkpointing: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **WIDER), attn_implementation=NAME)
    model = convert(model, Subln(init="ones")).train()
    set_lambda(model, strength)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def batch_of(num_rows: int, length: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    positions = torch.arange(length).expand(num_rows, -1)
    ids = torch.randint(1, 100, (num_rows, length))
    return {"input_ids": ids, "position_ids": positions, "segment_ids": torch.ones_like(ids)}


def backward(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """A loss on everything that can be captured."""
    output = run_body(model, batch, with_layers=True, qkv_layer=3)
    assert output.qkv is not None
    loss = (output.hidden_BTC @ lm_head_weight(model).t()).square().mean()
    loss = loss + sum(layer.square().mean() for layer in output.layers) + sum(states.square().mean() for states in output.qkv)
    loss.backward()


def peak_bytes(model: PreTrainedModel, batch: dict[str, Tensor]) -> int:
    """Largest amount of memory that torch holds at once beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        backward(model, batch)
    held = largest = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            largest = max(largest, held)
    return largest


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_gradients_are_the_same(family: str, strength: float) -> None:
    plain, checkpointed = student(family, strength, False), student(family, strength, True)
    for model in (plain, checkpointed):
        backward(model, batch_of(2, 32))
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_it_takes_less_than_half_of_the_memory() -> None:
    plain, checkpointed = (peak_bytes(student("llama", 1.0, checkpointing), batch_of(8, 128)) for checkpointing in (False, True))
    assert checkpointed < 0.5 * plain, (checkpointed, plain)
