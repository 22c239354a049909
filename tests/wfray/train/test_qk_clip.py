"""QK-clip: what it measures against dense attention, and what clipping does to the logits of ternary and full-precision students."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.wfray.student.conftest import WINDOW, WINDOWED, tiny_model
from wfray.config.convert import Subln
from wfray.config.optimizer import MuonClip
from wfray.quant import set_lambda
from wfray.student import convert, run_body
from wfray.train import Collective, qk_clip
from wfray.train.qk_clip import QKClip

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text"]
Batch = dict[str, Tensor]


def student(family: str, strength: float, grown: slice = slice(None), grow: float = 6.0, **options: Any) -> PreTrainedModel:
    """A student, `strength` its lambda, in which the rows `grown` of layer 1's W_q, or its QK-norm, have grown."""
    model = convert(tiny_model(family, **options), Subln(init="ones"))
    set_lambda(model, strength)
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        attention.q_proj.weight[grown] *= grow
        if family == "qwen3":
            attention.q_norm.weight *= grow
        if family == "gemma3_text":
            attention.q_norm.weight.add_(1.0).mul_(grow).sub_(1.0)
        if family == "qwen2":
            torch.nn.init.normal_(attention.q_proj.bias)
            torch.nn.init.normal_(attention.k_proj.bias)
    return model


def make(model: PreTrainedModel, **settings: Any) -> QKClip:
    return QKClip(model, MuonClip.model_validate({"kind": "muon_clip", "learning_rate": 1e-3, **settings}), Collective())


def dense_maxima(model: PreTrainedModel, packed: Batch, layer: int, window: int = 12) -> Tensor:
    """The largest logit of each head, from whole [T, T] matrices with a mask of documents, of the future and of the far past."""
    with torch.no_grad():
        qkv = run_body(model, packed, qkv_layer=layer).qkv
    assert qkv is not None
    query, key = qkv[0], qkv[1].repeat_interleave(qkv[0].shape[1] // qkv[1].shape[1], dim=1)
    segments = packed["segment_ids"]
    allowed = (
        (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] != 0) & torch.ones(12, 12).tril().triu(1 - window).bool()
    )
    logits = (query @ key.transpose(-1, -2)) * model.model.layers[layer].self_attn.scaling
    return logits.masked_fill(~allowed[:, None], -torch.inf).amax(dim=(0, 2, 3))


def observe(clip: QKClip, model: PreTrainedModel, packed: Batch) -> None:
    run_body(model, packed, observe=clip.observe)


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_maxima_are_those_of_dense_attention(packed: Batch, family: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qk_clip, "CHUNK", chunk)
    model = student(family, 1.0)
    clip = make(model)
    observe(clip, model, {name: tensor[:1] for name, tensor in packed.items()})
    observe(clip, model, {name: tensor[1:] for name, tensor in packed.items()})
    for layer in range(2):
        torch.testing.assert_close(clip.maxima[layer], dense_maxima(model, packed, layer))


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("family", sorted(WINDOWED))
def test_what_lies_beyond_a_layer_s_window_does_not_count(packed: Batch, family: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qk_clip, "CHUNK", chunk)
    model = student(family, 1.0, **WINDOWED[family])
    clip = make(model)
    observe(clip, model, packed)
    windows = [WINDOW, WINDOW] if family == "mistral" else [WINDOW if is_windowed(model, layer) else 12 for layer in range(2)]
    assert WINDOW in windows
    for layer, window in enumerate(windows):
        torch.testing.assert_close(clip.maxima[layer], dense_maxima(model, packed, layer, window))


def is_windowed(model: PreTrainedModel, layer: int) -> bool:
    return model.config.layer_types[layer] == "sliding_attention"


@pytest.mark.parametrize("strength", [0.0, 1.0], ids=["full", "ternary"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_beyond_tau_shrinks_by_exactly_tau_over_its_maximum(packed: Batch, family: str, strength: float) -> None:
    model = student(family, strength)
    before = [dense_maxima(model, packed, layer) for layer in range(2)]
    tau = float((before[0].max() + before[1].max()) / 2)
    assert before[0].max() < tau < before[1].max()
    codes = model.model.layers[1].self_attn.q_proj.ternary_weight()[0]
    clip = make(model, tau=tau)
    observe(clip, model, packed)
    assert clip.clip() == pytest.approx(float(before[1].max()))
    assert torch.equal(dense_maxima(model, packed, 0), before[0])
    torch.testing.assert_close(dense_maxima(model, packed, 1), before[1] * (tau / before[1].max()), rtol=2e-3, atol=1e-3)
    assert torch.equal(model.model.layers[1].self_attn.q_proj.ternary_weight()[0], codes)
    assert clip.maxima == {}, "the next step starts from nothing"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_in_full_precision_a_head_shrinks_alone(packed: Batch, family: str) -> None:
    model = student(family, 0.0, grown=slice(16))
    before = dense_maxima(model, packed, 1)
    tau = float(before.topk(2).values.mean())
    clip = make(model, tau=tau, scope="head")
    observe(clip, model, packed)
    clip.clip()
    wanted = before.clone()
    wanted[before.argmax()] = tau
    torch.testing.assert_close(dense_maxima(model, packed, 1), wanted, rtol=2e-3, atol=1e-3)


def test_a_ternary_head_alone_shrinks_less_than_asked_and_pays_in_density() -> None:
    attention = student("llama", 1.0).model.layers[1].self_attn

    def ternary_rows() -> Tensor:
        codes, scale = attention.q_proj.ternary_weight()
        return codes.view(4, -1) * scale

    before = ternary_rows()
    with torch.no_grad():
        qk_clip.shrink(attention, torch.tensor([0.64, 1.0, 1.0, 1.0]))
    after = ternary_rows()
    shrunk = after.norm(dim=1) / before.norm(dim=1)
    assert 0.8 * 1.05 < shrunk[0] < 1.0, "sqrt(0.64) was asked for"
    assert after[0].count_nonzero() < 0.95 * before[0].count_nonzero()


def test_logits_below_tau_change_nothing(packed: Batch) -> None:
    model = student("llama", 1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clip = make(model, tau=1e6)
    observe(clip, model, packed)
    clip.clip()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_heads_of_a_model_with_qk_norm_cannot_shrink_alone() -> None:
    with pytest.raises(ValueError, match="optimizer.scope head cannot clip a model with QK-norm.*set it to layer"):
        make(student("qwen3", 1.0), scope="head")
