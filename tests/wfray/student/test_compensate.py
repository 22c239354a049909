"""Compensated conversion of whole models of every family."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.wfray.student.conftest import WINDOWED, rough_model, tiny_model
from wfray.config.convert import Compensated, Subln
from wfray.quant import set_lambda
from wfray.quant.bitlinear import bit_linears
from wfray.student import compensate, convert, run_body
from wfray.student.compensate import LayerWalk, drift, layer_calls
from wfray.student.families import FAMILIES, family_of

Batch = dict[str, Tensor]
OPTIONS = Compensated(kind="compensated", ridge=0.05, damping=0.05)


def text(num_rows: int, seed: int) -> list[Batch]:
    """Rows of one document of 40 tokens and 8 of padding."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.cat([torch.arange(40), torch.arange(8)])[None]
    segments = torch.cat([torch.ones(40), torch.zeros(8)])[None].int()
    ids = [torch.randint(1, 100, (1, 48), generator=generator) for _ in range(num_rows)]
    return [{"input_ids": row, "position_ids": positions, "segment_ids": segments} for row in ids]


def compensated(model: PreTrainedModel, batches: list[Batch], placement: str = "none") -> tuple[PreTrainedModel, list[float]]:
    student = convert(deepcopy(model), Subln(placement=placement, init="ones"))
    return student, compensate(student, batches, OPTIONS, lambda *progress: None)


@torch.no_grad()
def drifts(student: PreTrainedModel, original: PreTrainedModel, batches: list[Batch]) -> list[float]:
    """Of every layer, over documents: the median of the squared relative difference."""
    found = []
    runs = [[run_body(model, batch, with_layers=True).layers for batch in batches] for model in (student, original)]
    for layer in range(original.config.num_hidden_layers):
        ours, theirs = (torch.cat([layers[layer][0, :40] for layers in run]) for run in runs)
        found.append(((ours - theirs).square().sum(-1) / theirs.square().sum(-1)).median().item())
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_student_is_nearer_to_its_original_than_rounding_alone_makes_it(family: str) -> None:
    """On text that was not calibrated on; biases, norms of q and k, and normed outputs are in some of the families."""
    original = rough_model(family)
    student, _ = compensated(original, text(40, seed=1))
    plain = convert(deepcopy(original), Subln(placement="none", init="ones"))
    fresh = text(6, seed=2)
    assert drifts(student, original, fresh)[-1] < 0.7 * drifts(plain, original, fresh)[-1]


@pytest.mark.parametrize(
    ("family", "placement", "options"),
    [
        *((family, "none", {}) for family in sorted(FAMILIES)),
        *((family, "none", options) for family, options in WINDOWED.items()),
        ("qwen3", "output", {}),
        ("qwen3", "all", {}),
    ],
)
def test_the_drift_is_what_the_finished_student_has_on_the_calibration_text(
    family: str, placement: str, options: dict[str, object]
) -> None:
    """Layers of one model may turn positions or see windows differently, and each is walked as the model runs it."""
    original = rough_model(family, **options)
    batches = text(8, seed=1)
    student, reported = compensated(original, batches, placement)
    assert reported == pytest.approx(drifts(student, original, batches), rel=1e-4)


def test_all_layers_are_reported_in_turn() -> None:
    student = convert(tiny_model("llama"), Subln(placement="none", init="ones"))
    told: list[tuple[int, int, float]] = []
    found = compensate(student, text(2, seed=1), OPTIONS, lambda *progress: told.append(progress))
    assert told == [(1, 2, found[0]), (2, 2, found[1])]


def test_padding_does_not_count_and_the_result_is_the_same_to_the_bit() -> None:
    batches = text(4, seed=1)
    padded = [{**batch, "input_ids": torch.cat([batch["input_ids"][:, :40], torch.full((1, 8), 7)], dim=1)} for batch in batches]
    first, second = (compensated(tiny_model("llama"), each)[0] for each in (batches, padded))
    for ours, theirs in zip(bit_linears(first), bit_linears(second), strict=True):
        assert torch.equal(ours.weight, theirs.weight)


def test_a_student_of_half_precision_gets_float32_latents_and_only_its_projections_change() -> None:
    original = tiny_model("llama").bfloat16()
    student, _ = compensated(original, text(8, seed=1))
    assert all(layer.weight.dtype == torch.float32 and layer.partial_lambda is None for layer in bit_linears(student))
    latent = {id(layer.weight) for layer in bit_linears(student)}
    kept = dict(original.named_parameters())
    rest = {name: parameter for name, parameter in student.named_parameters() if id(parameter) not in latent}
    assert rest and all(torch.equal(parameter, kept[name]) for name, parameter in rest.items())


def walk_of(model: PreTrainedModel, batches: list[Batch]) -> tuple[LayerWalk, list[Tensor]]:
    """The first layer of a converted model at lambda 0, and its inputs."""
    convert(model, Subln(placement="none", init="ones"))
    set_lambda(model, 0.0)
    hidden, keywords = layer_calls(model, batches)
    kept = [batch["segment_ids"].flatten() > 0 for batch in batches]
    return LayerWalk(model.model.layers[0], family_of(model.config), keywords[0], kept), hidden


@torch.no_grad()
def test_what_is_aimed_at_is_a_projections_product_without_its_bias() -> None:
    walk, hidden = walk_of(rough_model("qwen2"), text(1, seed=1))
    layer = walk.layer
    _, tokens = walk.watch(hidden)
    x = layer.input_layernorm(hidden[0])[0, :40]  # type: ignore[operator]
    assert walk.projections["q_proj"].bias is not None
    torch.testing.assert_close(tokens[0].outputs["q_proj"], x @ walk.projections["q_proj"].weight.T, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_was_lost_before_the_layer_is_made_up_for() -> None:
    """Streams ten times too long, of which the layer's inputs show the direction: its output projections take some of it back."""
    batches = text(40, seed=1)
    found = {}
    for aims_at_outputs in (False, True):
        walk, hidden = walk_of(rough_model("llama"), batches)
        walk.norms_outputs = aims_at_outputs
        results, streams = walk.compensate(hidden, [10 * stream for stream in hidden], OPTIONS)
        found[aims_at_outputs] = drift(results, streams, walk.kept)
    assert found[False] < 0.8 * found[True]


def test_codes_are_not_held_afterwards() -> None:
    student, _ = compensated(tiny_model("llama"), text(4, seed=1))
    layer = bit_linears(student)[0]
    before = layer.ternary_weight()[0].clone()
    layer.weight.data.neg_()
    assert torch.equal(layer.ternary_weight()[0], -before)


def test_at_lambda_0_the_latents_are_another_model_than_the_original() -> None:
    """They are where training goes on from, not a way back."""
    original = tiny_model("llama")
    student, _ = compensated(original, text(8, seed=1))
    set_lambda(student, 0.0)
    batch = text(1, seed=2)[0]
    with torch.no_grad():
        assert not torch.allclose(run_body(student, batch).hidden_BTC, run_body(original, batch).hidden_BTC, rtol=0.1)


@pytest.mark.gpu
def test_a_gpu_rounds_as_a_cpu_does() -> None:
    original = rough_model("llama")
    student = convert(deepcopy(original), Subln(placement="none", init="ones")).cuda()
    found = compensate(student, text(40, seed=1), OPTIONS, lambda *progress: None)
    assert found == pytest.approx(compensated(original, text(40, seed=1))[1], rel=0.1)
