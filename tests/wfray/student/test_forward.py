"""Packed rows give what each document alone gives, in every family, and captures are what the layers computed."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.wfray.student.conftest import rough_model
from wfray.student import hidden_states, run_body
from wfray.student.families import FAMILIES

DOCUMENTS = [(0, 0, 5), (0, 5, 12), (1, 0, 9)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_packed_documents_give_what_plain_transformers_gives_alone(family: str, packed: dict[str, torch.Tensor]) -> None:
    hidden_BTC = hidden_states(rough_model(family), packed)
    plain = rough_model(family, attention="eager")
    for row, start, end in DOCUMENTS:
        alone = plain.model(input_ids=packed["input_ids"][row : row + 1, start:end]).last_hidden_state[0]
        torch.testing.assert_close(hidden_BTC[row, start:end], alone, rtol=1e-5, atol=1e-5)


def test_captures_are_layer_outputs_and_rotated_states(packed: dict[str, torch.Tensor]) -> None:
    model = rough_model("llama")
    output = run_body(model, packed, with_layers=True, qkv_layer=1)
    torch.testing.assert_close(model.model.norm(output.layers[-1]), output.hidden_BTC)
    normed = model.model.layers[1].input_layernorm(output.layers[0])
    attention = model.model.layers[1].self_attn
    q, k, v = (
        getattr(attention, name)(normed).view(2, 12, heads, 16).transpose(1, 2)
        for name, heads in (("q_proj", 4), ("k_proj", 2), ("v_proj", 2))
    )
    cos, sin = model.model.rotary_emb(normed, packed["position_ids"])
    for ours, wanted in zip(output.qkv, (*apply_rotary_pos_emb(q, k, cos, sin), v), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 4}], ids=["whole", "window"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_generation_equals_plain_transformers(family: str, options: dict[str, int], packed: dict[str, torch.Tensor]) -> None:
    prompt = packed["input_ids"][:1, :7]
    ours, plain = (
        rough_model(family, attention, **options).generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
        for attention in ("segments", "eager")
    )
    assert ours.shape == (1, 15) and torch.equal(ours, plain)


def test_a_pass_that_fails_leaves_nothing_in_the_model(packed: dict[str, torch.Tensor]) -> None:
    """A hook that stayed would keep what every later pass computes."""
    model = rough_model("llama")
    with pytest.raises(IndexError):
        run_body(model, {**packed, "input_ids": packed["input_ids"] + 10_000}, with_layers=True)
    assert not any(layer._forward_hooks for layer in model.model.layers)
