"""Target concrete scores and block-wise relations against loops: masked tokens only, and the state at i - 1 for token i on both sides."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from tests.wfray.diffusion.conftest import BLOCK, MASK_ID, diffusion_model, packed_batch
from tests.wfray.diffusion.reference import dense_mask, documents_of, padded
from tests.wfray.student.conftest import rough_model
from wfray.config.objectives import Objective
from wfray.diffusion.forward import DiffusionForward
from wfray.diffusion.noise import row_noise
from wfray.objectives import StageLoss, Totals, num_related
from wfray.student.forward import lm_head_weight, run_body
from wfray.teacher.signals import SignalRequest, Signals
from wfray.teacher.sparse import top_k_of

SEED, NUM_IDS, TEMPERATURE, LAYER = 3, 8, 5.0, 1
SCORE = {"kind": "concrete_score", "weight": 2.0, "num_ids": NUM_IDS, "temperature": TEMPERATURE}
RELATIONS = {"kind": "attention_relations", "weight": 3.0, "layer": LAYER, "split_heads": None}


def objectives(*trees: dict[str, object]) -> list[Objective]:
    return TypeAdapter(list[Objective]).validate_python(list(trees))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return packed_batch()


@pytest.fixture
def signals(batch: dict[str, Tensor]) -> Signals:
    """Of a teacher that reads the packed documents causally, as the service does."""
    teacher = rough_model("llama")
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        output = run_body(teacher, batch, qkv_layer=LAYER)
        topk = top_k_of(output.hidden_BTC, lm_head_weight(teacher)[:MASK_ID], NUM_IDS, TEMPERATURE)
    assert output.qkv is not None
    return {"topk": topk, "qkv": output.qkv}


def measured(batch: dict[str, Tensor], signals: Signals, *trees: dict[str, object]) -> dict[str, float]:
    model = diffusion_model(ternary=False)
    loss = StageLoss(objectives(*trees), None, torch.float32)
    output = DiffusionForward(SEED, BLOCK, MASK_ID)(model, batch, qkv_layer=loss.qkv_layer)
    totals = Totals(int((batch["targets"] != -100).sum()), num_related(output.segments))
    total, parts = loss(output, lm_head_weight(model), batch, signals, totals, progress=0.0)
    assert total.requires_grad
    return parts


def noisy_runs(batch: dict[str, Tensor]):  # type: ignore[no-untyped-def]
    """Of every document and copy: row, packed positions, which tokens are masked, logits and Q, K, V of the layer at `x_t`."""
    model = diffusion_model(ternary=False, attention="sdpa")
    attention = model.model.layers[LAYER].self_attn
    for row, positions in documents_of(batch):
        tokens = [int(batch["input_ids"][row, p]) for p in positions]
        noise = row_noise(SEED, int(batch["sample_index"][row]), batch["position_ids"][row].numpy(), BLOCK)
        clean = padded(tokens, BLOCK, MASK_ID)
        bias = torch.zeros(2 * len(clean), 2 * len(clean)).masked_fill(~dense_mask(len(clean), BLOCK), torch.finfo(torch.float32).min)
        for copy in (1, 2):
            is_response = [False, *(int(batch["targets"][row, p]) != -100 for p in positions[:-1])]
            masked = [response and bool(noise[p]) == (copy == 1) for response, p in zip(is_response, positions, strict=True)]
            noisy = [MASK_ID if hidden else token for token, hidden in zip(clean, masked + [False] * len(clean), strict=False)]
            states: dict[str, Tensor] = {}
            hooks = [
                getattr(attention, name).register_forward_hook(lambda _, __, out, name=name, kept=states: kept.__setitem__(name, out))
                for name in ("q_proj", "k_proj", "v_proj")
            ]
            ids, places = torch.tensor([noisy + clean]), torch.tensor([[*range(len(clean))] * 2])
            with torch.no_grad():
                logits = model(input_ids=ids, position_ids=places, attention_mask=bias[None, None], use_cache=False).logits[0]
            for hook in hooks:
                hook.remove()
            yield row, positions, copy, masked, logits, states


def test_concrete_scores_cover_masked_tokens_and_are_renormalised_over_the_teachers_ids(batch: dict[str, Tensor], signals: Signals) -> None:
    total = 0.0
    for row, positions, _, masked, logits, _ in noisy_runs(batch):
        for place, hidden in enumerate(masked):
            if hidden:
                ids = signals["topk"].ids[row, positions[place - 1]]
                theirs = signals["topk"].log_probs[row, positions[place - 1], :-1].exp()
                ours = (logits[place - 1][ids] / TEMPERATURE).log_softmax(dim=-1)
                total += float(F.kl_div(ours, theirs / theirs.sum(), reduction="sum")) * TEMPERATURE**2
    num_targets = int((batch["targets"] != -100).sum())
    assert measured(batch, signals, SCORE)["concrete_score"] == pytest.approx(total / num_targets, rel=1e-4)


def test_relations_are_within_the_blocks_of_the_first_copy(batch: dict[str, Tensor], signals: Signals) -> None:
    total, num_rows = 0.0, 0
    for row, positions, copy, masked, _, states in noisy_runs(batch):
        if copy == 2:
            continue
        for start in range(0, len(positions), BLOCK):
            end = min(start + BLOCK, len(positions))
            predicts = any(masked[place] for place in range(start + 1, min(end + 1, len(positions))))
            if not predicts or end - start == 1:
                continue
            theirs_HLD = signals["qkv"][2][row][:, positions[start:end]]
            heads = len(theirs_HLD)
            ours_HLD = states["v_proj"][0, start:end].view(end - start, heads, -1).transpose(0, 1)
            relations = [(s @ s.transpose(1, 2) * s.shape[-1] ** -0.5).log_softmax(dim=-1) for s in (ours_HLD, theirs_HLD)]
            total += float(F.kl_div(relations[0], relations[1], log_target=True, reduction="sum")) / heads
            num_rows += end - start
    # Values alone: queries and keys are turned by their positions, which the loops do not.
    query, key, value = signals["qkv"]
    model = diffusion_model(ternary=False)
    output = DiffusionForward(SEED, BLOCK, MASK_ID)(model, batch, qkv_layer=LAYER)
    assert output.qkv is not None and output.qkv[0].shape == query.shape and output.qkv[1].shape == key.shape
    alone = StageLoss(objectives(RELATIONS), None, torch.float32)
    same: Signals = {"qkv": (output.qkv[0].detach(), output.qkv[1].detach(), value)}
    assert num_rows == num_related(DiffusionForward(SEED, BLOCK, MASK_ID).row_of(batch).noisy)
    _, parts = alone(output, lm_head_weight(model), batch, same, Totals(1, num_rows), progress=0.0)
    assert parts["attention_relations"] == pytest.approx(total / num_rows, rel=1e-3)


def test_all_objectives_at_once(batch: dict[str, Tensor], signals: Signals) -> None:
    parts = measured(batch, signals, {"kind": "cross_entropy"}, SCORE, RELATIONS)
    assert list(parts) == ["cross_entropy", "concrete_score", "attention_relations"]
    request = SignalRequest.of(objectives(SCORE, RELATIONS), seed=0, vocab_size=MASK_ID)
    assert request.wires == ["topk", "qkv"] and request.num_ids == NUM_IDS and request.temperature == TEMPERATURE


def test_a_signal_of_another_temperature_is_refused(batch: dict[str, Tensor], signals: Signals) -> None:
    with pytest.raises(ValueError, match="teacher's topk was made at temperature 5.0, concrete_score is at 2.0"):
        measured(batch, signals, {**SCORE, "temperature": 2.0})
