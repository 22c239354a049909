"""The teacher's signals against plain transformers on the same documents, and what it refuses."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from wfray.config.objectives import Alignment, AttentionRelations, CrossEntropy, LogitsKL
from wfray.student import run_body
from wfray.teacher import SignalRequest, TransformersEngine, decode_signals
from wfray.teacher.signals import decode, encode

DOCUMENTS = [(0, 0, 5), (0, 5, 12), (1, 0, 9)]


def test_one_request_gives_every_wire_as_each_document_alone_would(checkpoint: Path, batch: dict[str, np.ndarray]) -> None:
    engine = TransformersEngine(checkpoint, "float32")
    signals = decode_signals(engine.signals(batch, SignalRequest(wires=["hidden", "layers", "qkv", "logits"], qkv_layer=1)))
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
    for row, start, end in DOCUMENTS:
        ids = torch.from_numpy(batch["input_ids"][row : row + 1, start:end]).long()
        alone = plain(ids, output_hidden_states=True)
        close(signals["logits"][row, start:end], alone.logits[0])
        close(signals["hidden"][row, start:end], alone.hidden_states[-1][0])
        close(signals["layers"][0, row, start:end], alone.hidden_states[1][0])
    assert [tuple(tensor.shape) for tensor in signals["qkv"]] == [(2, 4, 12, 16), (2, 2, 12, 16), (2, 2, 12, 16)]


def close(ours: Tensor, wanted: Tensor) -> None:
    """Equal up to bfloat16's rounding, two parts in a thousand."""
    torch.testing.assert_close(ours.float(), wanted, rtol=8e-3, atol=2e-2)


def test_the_head_turns_hidden_states_into_logits(checkpoint: Path, batch: dict[str, np.ndarray]) -> None:
    engine = TransformersEngine(checkpoint, "float32")
    signals = decode_signals(engine.signals(batch, SignalRequest(wires=["hidden", "logits"])))
    close(signals["hidden"].float() @ decode(engine.head()).float().t(), signals["logits"].float())


def test_cut_down_signals_are_those_of_the_logits(checkpoint: Path, batch: dict[str, np.ndarray]) -> None:
    engine = TransformersEngine(checkpoint, "float32")
    answer = engine.signals(batch, SignalRequest(wires=["topk", "sampled", "logits"], num_ids=6, temperature=2.0, seed=3))
    signals = decode_signals(answer)
    p = (signals["logits"].double() / 2.0).softmax(-1)
    largest, drawn = signals["topk"], signals["sampled"]
    assert largest.ids.shape == drawn.ids.shape == (2, 12, 6)
    torch.testing.assert_close(largest.log_probs.exp()[..., :6].double(), p.gather(-1, largest.ids), rtol=2e-2, atol=0)
    assert (largest.log_probs.exp()[..., :6].double() - p.sort(dim=-1, descending=True)[0][..., :6]).abs().max() < 1e-3
    entropy = torch.distributions.Categorical(probs=p).entropy()
    torch.testing.assert_close(drawn.entropy.double(), entropy, rtol=1e-3, atol=0)
    assert (drawn.weights.double() >= p.gather(-1, drawn.ids) * 0.98).all()
    assert {name: array.dtype for name, array in answer.items() if name.endswith("ids")} == {
        "topk_ids": np.uint16,
        "sampled_ids": np.uint16,
    }


@pytest.mark.parametrize("wire", ["topk", "sampled"])
def test_equal_requests_have_equal_answers_and_another_seed_another_sample(
    checkpoint: Path, batch: dict[str, np.ndarray], wire: Literal["topk", "sampled"]
) -> None:
    engine = TransformersEngine(checkpoint, "bfloat16")
    first, second, other = (engine.signals(batch, SignalRequest(wires=[wire], num_ids=6, seed=seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert np.array_equal(first[f"{wire}_ids"], other[f"{wire}_ids"]) == (wire == "topk")


def test_a_request_without_a_number_of_ids_or_with_too_many_is_refused(checkpoint: Path, batch: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="the wires topk and sampled need num_ids"):
        SignalRequest(wires=["topk"])
    engine = TransformersEngine(checkpoint, "float32")
    size = engine.fingerprint.vocab_size
    with pytest.raises(ValueError, match=f"num_ids {size} must be less than the vocabulary of {size}"):
        engine.signals(batch, SignalRequest(wires=["topk"], num_ids=size))


def test_objectives_name_what_they_need() -> None:
    objectives = [
        CrossEntropy(kind="cross_entropy"),
        LogitsKL(kind="logits_kl", signal="sampled", temperature=2.0),
        AttentionRelations(kind="attention_relations", layer=3),
        Alignment(kind="alignment"),
    ]
    wanted = SignalRequest(wires=["sampled", "qkv", "layers"], qkv_layer=3, num_ids=16, temperature=2.0, seed=5)
    assert SignalRequest.of(objectives, seed=5) == wanted
    assert SignalRequest.of([LogitsKL(kind="logits_kl")], seed=0, vocab_size=90) == SignalRequest(wires=["hidden"], vocab_size=90)


def test_padding_of_the_vocabulary_is_left_out(checkpoint: Path, batch: dict[str, np.ndarray]) -> None:
    engine = TransformersEngine(checkpoint, "float32")
    whole, cut = (
        decode_signals(engine.signals(batch, SignalRequest(wires=["logits", "topk", "sampled"], num_ids=6, vocab_size=size)))
        for size in (None, 90)
    )
    assert torch.equal(cut["logits"], whole["logits"][..., :90])
    assert cut["topk"].ids.max() < 90 and cut["sampled"].ids.max() < 90 <= whole["topk"].ids.max()
    torch.testing.assert_close(cut["topk"].log_probs.exp().sum(-1), torch.ones(2, 12))


def test_a_wire_that_needs_a_layer_is_refused_without_one_or_beyond_the_last(checkpoint: Path, batch: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="the wire qkv needs qkv_layer"):
        SignalRequest(wires=["qkv"])
    with pytest.raises(ValueError, match="qkv_layer 2 does not exist: the teacher has 2 layers"):
        TransformersEngine(checkpoint, "float32").signals(batch, SignalRequest(wires=["qkv"], qkv_layer=2))


def test_answers_repeat_to_the_bit(checkpoint: Path, batch: dict[str, np.ndarray]) -> None:
    engine = TransformersEngine(checkpoint, "bfloat16")
    first, second = (engine.signals(batch, SignalRequest(wires=["hidden"]))["hidden"] for _ in range(2))
    assert np.array_equal(first, second)


def test_bfloat16_crosses_the_wire_to_the_bit() -> None:
    tensor = torch.randn(3, 5).to(torch.bfloat16)
    array = encode(tensor)
    array.flags.writeable = False
    assert array.dtype == np.uint16
    assert torch.equal(decode(array), tensor)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="teacher's hidden holds values that are not finite"):
        decode_signals({"hidden": encode(torch.tensor([1.0, torch.nan]))})


def test_rows_longer_than_the_context_are_refused(checkpoint: Path) -> None:
    engine = TransformersEngine(checkpoint, "float32")
    rows = {name: np.zeros((1, 65), dtype=np.int32) for name in ("input_ids", "position_ids", "segment_ids")}
    with pytest.raises(ValueError, match="rows of 65 tokens exceed the teacher's context of 64"):
        engine.signals(rows, SignalRequest(wires=["hidden"]))


def test_captures_do_not_change_the_result(checkpoint: Path, batch: dict[str, np.ndarray]) -> None:
    engine = TransformersEngine(checkpoint, "float32")
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    captured = run_body(engine.model, tensors, with_layers=True, qkv_layer=0)
    assert torch.equal(run_body(engine.model, tensors).hidden_BTC, captured.hidden_BTC)
