"""Held-out cross-entropy, against transformers' own loss and against logits formed whole."""

import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from wfray.data.batch import PackedBatch
from wfray.evals import Score, total
from wfray.evals.perplexity import score_batch
from wfray.student import hidden_states, lm_head_weight, load_original
from wfray.train.feed import as_tensors


def rows(batch: PackedBatch, part: slice = slice(None)) -> dict[str, torch.Tensor]:
    return as_tensors(batch, part)


def test_equals_the_loss_of_plain_transformers_on_each_document_alone(
    models: Path, documents: list[np.ndarray], batch: PackedBatch
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(models / "original", attn_implementation="eager", dtype=torch.float32).eval()
    sum_nats, num_tokens = 0.0, 0
    for document in documents:
        if len(document) > 1:
            ids = torch.from_numpy(document.astype(np.int64))[None]
            sum_nats += plain(input_ids=ids, labels=ids).loss.item() * (len(document) - 1)
            num_tokens += len(document) - 1
    score = score_batch(load_original(models / "original"), rows(batch), torch.float32)
    assert score.num_tokens == num_tokens
    assert score.loss == pytest.approx(sum_nats / num_tokens, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(sum_nats / num_tokens), rel=1e-4)


def test_equals_cross_entropy_of_whole_logits(model: PreTrainedModel, batch: PackedBatch) -> None:
    tensors = rows(batch)
    with torch.no_grad():
        logits = hidden_states(model, tensors) @ lm_head_weight(model).T
    whole = F.cross_entropy(logits.double().flatten(0, 1), tensors["targets"].flatten().long(), ignore_index=-100, reduction="sum")
    assert score_batch(model, tensors, torch.float32).sum_nats == pytest.approx(whole.item(), rel=1e-6)


def test_chunks_and_batches_do_not_change_the_score(model: PreTrainedModel, batch: PackedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_batch(model, rows(batch), torch.float32)
    parts = total(score_batch(model, rows(batch, slice(row, row + 1)), torch.float32) for row in range(len(batch["input_ids"])))
    monkeypatch.setattr(import_module("wfray.objectives.linear_losses"), "CHUNK_TOKENS", 5)
    chunked = score_batch(model, rows(batch), torch.float32)
    assert whole.num_tokens == parts.num_tokens == chunked.num_tokens
    assert parts.sum_nats == pytest.approx(whole.sum_nats, rel=1e-6)
    assert chunked.sum_nats == pytest.approx(whole.sum_nats, rel=1e-6)


def test_bfloat16_is_near_float32_and_repeats_to_the_bit(model: PreTrainedModel, batch: PackedBatch) -> None:
    low = score_batch(model, rows(batch), torch.bfloat16)
    assert low == score_batch(model, rows(batch), torch.bfloat16)
    assert low.loss == pytest.approx(score_batch(model, rows(batch), torch.float32).loss, rel=0.02)
    assert low.sum_nats != score_batch(model, rows(batch), torch.float32).sum_nats


def test_scoring_takes_no_gradient_and_leaves_the_model_as_it_was(model: PreTrainedModel, batch: PackedBatch) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score_batch(model, rows(batch), torch.bfloat16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_broken_weights_and_empty_batches_are_refused(model: PreTrainedModel, batch: PackedBatch) -> None:
    nothing = {**rows(batch), "targets": torch.full_like(rows(batch)["targets"], -100)}
    with pytest.raises(ValueError, match="no token to predict"):
        score_batch(model, nothing, torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = math.nan
    with pytest.raises(ValueError, match="weights are broken"):
        score_batch(model, rows(batch), torch.float32)


def test_totals_add_sums_not_means() -> None:
    both = total([Score(num_tokens=1, sum_nats=2.0), Score(num_tokens=3, sum_nats=3.0)])
    assert (both.num_tokens, both.loss) == (4, 1.25)
    assert both.perplexity == pytest.approx(math.exp(1.25))
