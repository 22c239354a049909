"""Muon against a plain Newton-Schulz iteration in float64, the split of the weights between Muon and AdamW, and AdamW itself."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.wfray.student.conftest import tiny_model
from tests.wfray.train.conftest import config
from wfray.config.convert import Subln
from wfray.student import convert
from wfray.train.optimizer import MuonWithAdamW, make_optimizer, set_learning_rate

MUON = {"kind": "muon", "learning_rate": 1e-2, "weight_decay": 0.1, "momentum": 0.9}


def student(family: str = "llama") -> PreTrainedModel:
    return convert(tiny_model(family), Subln(init="ones"))


def give_gradients(model: PreTrainedModel, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def newton_schulz(matrix: Tensor, num_steps: int) -> Tensor:
    """The quintic iteration of Jordan et al., in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(num_steps):
        gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        polynomial = -4.7750 * gram + 2.0315 * gram @ gram
        x = 3.4445 * x + (polynomial @ x if x.shape[0] <= x.shape[1] else x @ polynomial)
    return x


@pytest.mark.parametrize("num_steps", [3, 5])
def test_muon_agrees_with_the_plain_iteration(num_steps: int) -> None:
    model = student()
    optimizer = make_optimizer(model, config(optimizer={**MUON, "newton_schulz_steps": num_steps}).train)
    weight = model.model.layers[1].mlp.down_proj.weight
    wanted, buffer = weight.detach().double().clone(), torch.zeros_like(weight).double()
    for step in range(3):
        give_gradients(model, step)
        gradient = weight.grad.double()
        buffer = 0.9 * buffer + 0.1 * gradient
        update = newton_schulz(0.1 * gradient + 0.9 * buffer, num_steps)
        wanted = wanted * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * max(weight.shape) ** 0.5 * update
        before = weight.detach().double().clone()
        optimizer.step()
        moved = (weight.detach().double() - wanted).norm() / (weight.detach().double() - before).norm()
        assert moved < 0.03, "bfloat16 products differ from float64 ones by about two parts in a hundred"


def test_the_update_of_muon_is_nearly_orthogonal_and_as_large_as_that_of_adamw() -> None:
    model = student()
    weight = model.model.layers[0].self_attn.q_proj.weight
    before = weight.detach().clone()
    optimizer = make_optimizer(model, config(optimizer={"kind": "muon", "learning_rate": 1.0}).train)
    give_gradients(model, 0)
    optimizer.step()
    update = (before - weight.detach()).double()
    singular = torch.linalg.svdvals(update) / (0.2 * max(weight.shape) ** 0.5)
    assert 0.6 < singular.min() and singular.max() < 1.3
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_matrices_of_the_layers_go_to_muon_and_everything_else_to_adamw() -> None:
    model = student("qwen2")
    optimizer = make_optimizer(model, config(optimizer=MUON).train)
    assert isinstance(optimizer, MuonWithAdamW)
    by_muon = {name for name, parameter in model.named_parameters() if "momentum_buffer" in optimizer.state[parameter]}
    by_adamw = {name for name, parameter in model.named_parameters() if "exp_avg" in optimizer.state[parameter]}
    assert by_muon == {name for name in by_muon if name.startswith("model.layers.") and name.endswith("_proj.weight")}
    assert len(by_muon) == 2 * 7 and not by_muon & by_adamw
    assert by_adamw >= {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"}
    assert by_muon | by_adamw == {name for name, _ in model.named_parameters()}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.model.embed_tokens.weight)] == 0.1 and decays[id(model.model.norm.weight)] == 0.0
    set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.125}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_embedding_and_head_learn_at_their_own_rate(kind: str) -> None:
    model = student()
    settings = {"kind": kind, "learning_rate": 1e-2, "embedding_learning_rate": 2.5e-3}
    optimizer = make_optimizer(model, config(optimizer=settings).train)
    tables = {id(model.model.embed_tokens.weight), id(model.lm_head.weight)}
    for factor in (1.0, 0.5):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert set(rates) == {id(p) for p in model.parameters()}
        assert rates == {name: pytest.approx(factor * (2.5e-3 if name in tables else 1e-2)) for name in rates}
        set_learning_rate(optimizer, 0.5e-2)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_what_adamw_moves_moves_as_the_formula_says(kind: str) -> None:
    model = student()
    optimizer = make_optimizer(model, config(optimizer={"kind": kind, "learning_rate": 1e-2, "weight_decay": 0.1}).train)
    matrix, norm = model.model.embed_tokens.weight, model.model.norm.weight
    wanted = {weight: (weight.detach().double().clone(), 0.0, 0.0) for weight in (matrix, norm)}
    for step in range(1, 4):
        give_gradients(model, step)
        for weight, (value, first, second) in wanted.items():
            gradient = weight.grad.double()
            first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
            decayed = value * (1 - 1e-2 * 0.1) if weight is matrix else value
            moved = decayed - 1e-2 * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
            wanted[weight] = (moved, first, second)
        optimizer.step()
    for weight, (value, _, _) in wanted.items():
        torch.testing.assert_close(weight.detach().double(), value, rtol=1e-5, atol=1e-6)
