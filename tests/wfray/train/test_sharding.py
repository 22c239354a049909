"""Sharding over gloo workers: losses, gradients and codes against those of one worker, on the same global batch.

Sums over workers and micro-batches have another order, about 1e-7 relative in float32. Once weights have moved apart by that, a weight at
the edge between two codes may be quantized otherwise, which moves the losses by 1e-4 or more: so steps after the first get a
wider tolerance. Adam's eps is 1e-3, since it would blow up the rounding of gradients near zero.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.wfray.student.conftest import SHAPE
from tests.wfray.train.workers import run_workers
from wfray.config.convert import Subln
from wfray.config.objectives import Alignment, AttentionRelations, CrossEntropy, LogitsKL
from wfray.config.train import Learned
from wfray.objectives import StageLoss, Totals
from wfray.quant import bit_linears, quantize_weight, set_lambda
from wfray.student import convert, lm_head_weight, run_body
from wfray.student.attention import NAME
from wfray.train import Collective, Replica
from wfray.train.optimizer import freeze

OBJECTIVES = [
    CrossEntropy(kind="cross_entropy"),
    LogitsKL(kind="logits_kl", temperature=2.0),
    Alignment(kind="alignment"),
    AttentionRelations(kind="attention_relations", layer=1, split_heads=None),
]
ROWS, LENGTH = 12, 12
LAMBDAS = [0.5, 0.0, 1.0, 1.0, 1.0]
"""At 0 a SubLN is not used and has no gradient, so the first step, whose gradients are compared, is one between."""


def make_model(seed: int, tied: bool) -> PreTrainedModel:
    """A student whose rows (32, 50, 64, 99) divide over no number of workers throughout."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model("llama", **{**SHAPE, "intermediate_size": 50, "vocab_size": 99}, tie_word_embeddings=tied)
    return convert(AutoModelForCausalLM.from_config(config, attn_implementation=NAME), Subln(init="ones")).train()


def make_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 99, (ROWS, LENGTH), generator=generator)
    return {
        "input_ids": ids,
        "targets": torch.cat([ids[:, 1:], torch.full((ROWS, 1), -100)], dim=1),
        "position_ids": torch.tensor([[*range(5), *range(7)]]).expand(ROWS, -1),
        "segment_ids": torch.tensor([[1] * 5 + [2] * 7]).expand(ROWS, -1),
    }


def whole(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def train(tied: bool, checkpointing: bool = False, learned: Learned = "all") -> dict[str, Any]:
    """A few steps on this worker's share of the batch, row by row; what every worker must agree on."""
    student, teacher = make_model(0, tied), make_model(1, tied)
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    freeze(student, learned)
    collective = Collective()
    replica = Replica(student, torch.float32, collective)
    loss = StageLoss(OBJECTIVES, lm_head_weight(teacher).detach(), torch.float32)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3, fused=True)
    totals = Totals(num_targets=ROWS * (LENGTH - 1), num_related=ROWS * LENGTH)
    share = ROWS // collective.world_size
    mine = range(collective.rank * share, (collective.rank + 1) * share)
    seen: dict[str, Any] = {"losses": [], "norms": [], "codes_are_those_of_the_whole_weight": []}
    for strength in LAMBDAS:
        set_lambda(student, strength)
        replica.hold_codes()
        total = 0.0
        for row in mine:
            batch = {name: tensor[row : row + 1] for name, tensor in make_batch().items()}
            with torch.no_grad():
                wanted = run_body(teacher, batch, with_layers=True, qkv_layer=1)

            def compute(batch: dict[str, Tensor] = batch, wanted: Any = wanted) -> tuple[Tensor, dict[str, float]]:
                output = run_body(student, batch, with_layers=True, qkv_layer=1)
                signals = {"hidden": wanted.hidden_BTC, "layers": wanted.layers, "qkv": wanted.qkv}
                return loss(output, lm_head_weight(student), batch, signals, totals, progress=0.0)

            part, _ = replica.forward(compute, is_last=row == mine[-1])
            part.backward()
            total += part.item()
        seen["losses"].append(collective.sum_floats({"loss": total})["loss"])
        found = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
        seen["gradients"] = seen.get("gradients") or {name: whole(gradient) for name, gradient in found.items()}
        seen["norms"].append(whole(torch.nn.utils.clip_grad_norm_(parameters, 1.0)).item())
        seen["codes_are_those_of_the_whole_weight"].append(all(codes_agree(layer) for layer in bit_linears(student)))
        replica.release_codes()
        optimizer.step()
        optimizer.zero_grad()
    seen["heldout"] = replica.evaluate(lambda: run_body(student, make_batch()).hidden_BTC)
    replica.gather()
    return seen | {"weights": {name: parameter.detach() for name, parameter in student.named_parameters()}}


def codes_agree(layer: Any) -> bool:
    codes, scale = quantize_weight(whole(layer.weight))
    held, held_scale = layer.ternary_weight()
    return torch.equal(codes, held) and torch.equal(scale, held_scale)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_workers(2, train, tmp_path_factory.mktemp("two"), True)


def check(answers: list[dict[str, Any]], tied: bool, learned: Learned = "all") -> None:
    """Workers agree to the bit with each other, and with one worker but for the order of summation."""
    torch.use_deterministic_algorithms(True)
    wanted, first = train(tied, learned=learned), answers[0]
    assert all(first["codes_are_those_of_the_whole_weight"])
    assert first["losses"][0] == pytest.approx(wanted["losses"][0], rel=1e-6)
    assert first["norms"][0] == pytest.approx(wanted["norms"][0], rel=1e-6)
    assert first["gradients"].keys() == wanted["gradients"].keys()
    for name, gradient in wanted["gradients"].items():
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
    assert first["losses"] == pytest.approx(wanted["losses"], rel=5e-3)
    assert first["norms"] == pytest.approx(wanted["norms"], rel=5e-2)
    for name, weight in wanted["weights"].items():
        assert (first["weights"][name] - weight).norm() < 2e-2 * weight.norm()
    for other in answers[1:]:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


def test_two_workers_compute_what_one_does(two: list[dict[str, Any]]) -> None:
    check(two, tied=True)


@pytest.mark.parametrize(("num_workers", "tied"), [(3, True), (4, False)])
def test_more_workers_compute_what_one_does(tmp_path: Path, num_workers: int, tied: bool) -> None:
    check(run_workers(num_workers, train, tmp_path, tied), tied)


@pytest.mark.parametrize(("learned", "names"), [("norms", ("norm",)), ("unquantized", ("norm", "embed_tokens"))])
def test_workers_learn_what_is_not_ternary_as_one_does(tmp_path: Path, learned: Learned, names: tuple[str, ...]) -> None:
    answers = run_workers(2, train, tmp_path, True, False, learned)
    check(answers, tied=True, learned=learned)
    found = list(answers[0]["gradients"])
    assert all(any(name in key for key in found) for name in names) and all(any(name in key for name in names) for key in found)


def test_gradient_checkpointing_changes_nothing(two: list[dict[str, Any]], tmp_path: Path) -> None:
    torch.testing.assert_close(run_workers(2, train, tmp_path, True, True), two, rtol=0, atol=0)


def read_a_sharded_weight() -> str:
    student = make_model(0, tied=True)
    replica = Replica(student, torch.float32, Collective())
    bit_linears(student)[0].register_forward_pre_hook(lambda layer, args: print(layer.weight.abs().sum()))
    replica.hold_codes()
    try:
        replica.forward(lambda: run_body(student, make_batch()).hidden_BTC)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_floats_that_are_not_there_are_not_read(tmp_path: Path) -> None:
    answers = run_workers(2, read_a_sharded_weight, tmp_path)
    assert answers == ["the latent weight is sharded: only its codes are held on every worker"] * 2
