"""Every family against the plain reference, as original and as student, and what is no known family."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from tests.wfray.student.conftest import FAMILY_OPTIONS, SHAPE, WINDOWED, rough_model
from tests.wfray.student.reference import Reference
from wfray.config.convert import Subln
from wfray.quant import set_lambda
from wfray.student import convert, hidden_states, lm_head_weight
from wfray.student.families import FAMILIES, family_of
from wfray.student.original import architecture_of

DOCUMENTS = [(0, 0, 5), (0, 5, 12), (1, 0, 9)]
VARIANTS = [(family, {}) for family in sorted(FAMILIES)] + [(family, options) for family, options in WINDOWED.items()]
VARIANT_NAMES = [family + ("-window" if options else "") for family, options in VARIANTS]
every_variant = pytest.mark.parametrize(("family", "options"), VARIANTS, ids=VARIANT_NAMES)


def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """[B, T, V] of a packed batch."""
    return hidden_states(model, batch) @ lm_head_weight(model).T


@every_variant
def test_the_student_without_quantization_and_subln_has_the_original_s_logits(family, options, packed) -> None:
    student = convert(rough_model(family, **options), Subln(placement="none"))
    set_lambda(student, 0.0)
    plain = rough_model(family, attention="eager", **options)
    ours = logits(student, packed)
    for row, start, end in DOCUMENTS:
        alone = plain(input_ids=packed["input_ids"][row : row + 1, start:end]).logits[0]
        torch.testing.assert_close(ours[row, start:end], alone, rtol=2e-5, atol=2e-5)


@every_variant
def test_the_original_is_the_reference(family, options, packed) -> None:
    model = rough_model(family, **options)
    ours, reference = logits(model, packed), Reference(model.config, model.state_dict())
    for row, start, end in DOCUMENTS:
        wanted = reference.logits(packed["input_ids"][row, start:end].tolist())
        torch.testing.assert_close(ours[row, start:end].double(), wanted, rtol=2e-5, atol=2e-5)


@every_variant
@pytest.mark.parametrize("placement", ["none", "output", "all"])
def test_the_quantized_student_with_subln_is_the_reference(family, options, placement, packed) -> None:
    student = convert(rough_model(family, **options), Subln(placement=placement, init="ones"))
    for name, parameter in student.named_parameters():
        if "proj.norm" in name:
            parameter.data *= 0.5 + torch.rand_like(parameter)
    ours, reference = logits(student, packed), Reference(student.config, student.state_dict(), subln_eps=1e-5)
    wanted = torch.cat([reference.logits(packed["input_ids"][row, start:end].tolist()) for row, start, end in DOCUMENTS])
    found = torch.cat([ours[row, start:end] for row, start, end in DOCUMENTS]).double()
    # Float32 can put an activation on the other side of a rounding edge than float64: one part in 127 of one feature.
    error = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert error.median() < 2e-6
    assert error.max() < 0.05


def test_an_untied_head_is_kept(packed) -> None:
    student = convert(rough_model("qwen3", tied=False), Subln(placement="none"))
    set_lambda(student, 0.0)
    assert lm_head_weight(student) is not student.get_input_embeddings().weight
    wanted = Reference(student.config, student.state_dict()).logits(packed["input_ids"][1, :9].tolist())
    torch.testing.assert_close(logits(student, packed)[1, :9].double(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_head_dimension_is_the_configuration_s(family) -> None:
    found = architecture_of(rough_model(family).config)
    assert (found.head_dim, found.num_heads, found.hidden_size) == (16, 4, 32)


def test_a_family_out_of_the_table_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="family 'gpt2' cannot become students; known families: gemma3_text, llama, .*families.py"):
        family_of(AutoConfig.for_model("gpt2"))


def test_a_multimodal_gemma_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"family 'gemma3' cannot .*save its text model .*gemma3_text"):
        family_of(AutoConfig.for_model("gemma3"))


@pytest.mark.parametrize("option", [{"final_logit_softcapping": 30.0}, {"use_bidirectional_attention": True}])
def test_an_option_that_is_not_supported_is_refused_by_name(option) -> None:
    config = AutoConfig.for_model("gemma3_text", **SHAPE, **FAMILY_OPTIONS["gemma3_text"], **option)
    with pytest.raises(ValueError, match=next(iter(option))):
        family_of(config)
