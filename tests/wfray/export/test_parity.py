"""The exported file computes what was trained, in every type; and each known way to get it wrong is found out."""

import math

import numpy as np
import pytest
import torch
from gguf import GGUFReader

import wfray.export.gguf_bitnet as gguf_bitnet
from wfray.config.export import Parity
from wfray.export.gguf_bitnet import write_bitnet
from wfray.export.llama_cpp import logits_of, open_model
from wfray.export.original import write_original
from wfray.export.parity import distance, measure_parity, training_logits, without_rounding
from wfray.student import load_original, load_student

BOUNDS = Parity()


@pytest.fixture(scope="module")
def sequences(tokenizer, texts) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in texts]


CASES = [("even", "Q4_0"), ("narrow", "Q4_0"), ("narrow", "TQ2_0"), ("narrow", "TQ1_0"), ("narrow", "F16"), ("narrow, other eps", "TQ2_0")]


@pytest.mark.parametrize(("size", "linear_type"), CASES)
def test_a_file_computes_what_was_trained(build, tmp_path, sequences, size, linear_type):
    _, student = build(size)
    write_bitnet(student, tmp_path / "model.gguf", linear_type, "F16")
    parity = measure_parity(student, tmp_path / "model.gguf", sequences, threads=1)
    parity.check(BOUNDS, "model.gguf")
    assert parity.num_tokens == sum(len(sequence) for sequence in sequences)
    assert math.isclose(parity.perplexity_file, parity.perplexity_training, rel_tol=0.01)


def test_the_float16_file_is_exact_but_for_rounded_activations(build, tmp_path, sequences):
    _, student = build("narrow, other eps")
    write_bitnet(student, tmp_path / "model.gguf", "F16", "F16")
    engine = open_model(tmp_path / "model.gguf", context=128, threads=1, all_logits=True)
    unrounded = without_rounding(load_student(student))
    for sequence in sequences:
        with torch.no_grad():
            expected_TV = torch.log_softmax(training_logits(unrounded, sequence), dim=-1)
        agreement, kl = distance(expected_TV, torch.log_softmax(torch.from_numpy(logits_of(engine, sequence)), dim=-1))
        assert agreement.mean() >= 0.99 and kl.mean() < 1e-6


def test_a_widened_hidden_axis_leaves_the_function_as_it_was(build, tmp_path, sequences, monkeypatch):
    """In float16, without int8 activations between: widened to 768 channels of which 96 are used, against 96."""
    _, student = build("narrow, other eps")
    write_bitnet(student, tmp_path / "plain.gguf", "F16", "F16")
    monkeypatch.setattr(gguf_bitnet, "block_size", lambda linear_type: 256)
    widened = write_bitnet(student, tmp_path / "widened.gguf", "F16", "F16")
    assert (widened.hidden, widened.hidden_stored) == (96, 768)
    engines = (open_model(tmp_path / f"{name}.gguf", context=128, threads=1, all_logits=True) for name in ("plain", "widened"))
    plain_TV, widened_TV = (logits_of(engine, sequences[0]) for engine in engines)
    assert np.abs(plain_TV - widened_TV).max() < 5e-3 * np.abs(plain_TV).max()


def read_values(path) -> dict[str, np.ndarray]:
    return {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in GGUFReader(path).tensors}


def test_no_tensor_is_stored_in_another_type_than_asked(build, tmp_path):
    _, student = build("narrow")
    write_bitnet(student, tmp_path / "model.gguf", "TQ2_0", "Q8_0")
    stored = read_values(tmp_path / "model.gguf")
    assert stored["token_embd.weight"] == ("Q8_0", [768, 49152])
    assert stored["blk.1.ffn_down.weight"] == ("TQ2_0", [512, 768])
    assert stored["blk.0.attn_k.weight"] == ("TQ2_0", [768, 256])
    assert {kind for name, (kind, shape) in stored.items() if len(shape) == 2 and name.startswith("blk.")} == {"TQ2_0"}
    assert {kind for kind, shape in stored.values() if len(shape) == 1} == {"F32"}


def latent(weights, source, size, gain, linear_type):
    """The mistake of writing what was trained on instead of what was trained."""
    return lambda: gguf_bitnet.pad(gguf_bitnet.read(weights, source), size).astype(np.float16)


def inverted(quantize_weight):
    """The mistake of dividing by the scale."""
    return lambda weight: (quantize_weight(weight)[0], 1 / quantize_weight(weight)[1])


def permuted(quantize_weight):
    """The mistake of writing q and k for the other RoPE layout."""

    def make(weight):
        codes, scale = quantize_weight(weight)
        heads = codes.view(-1, 2, 16, codes.shape[1]) if codes.shape[1] == 64 and codes.shape[0] in (32, 64) else codes
        return (heads.transpose(1, 2).reshape(codes.shape) if heads is not codes else codes), scale

    return make


def no_sub_norms(read):
    """The mistake of leaving SubLN out (weight 1)."""
    return lambda weights, name: np.ones_like(read(weights, name)) if "_proj.norm" in name else read(weights, name)


@pytest.mark.parametrize("mistake", ["latent", "inverted", "permuted", "no_sub_norms"])
def test_known_mistakes_miss_the_bounds(small, tmp_path, sequences, monkeypatch, mistake):
    linear_type = "F16" if mistake == "latent" else "Q4_0"
    match mistake:
        case "latent":
            monkeypatch.setattr(gguf_bitnet, "ternary_maker", latent)
        case "inverted":
            monkeypatch.setattr(gguf_bitnet, "quantize_weight", inverted(gguf_bitnet.quantize_weight))
        case "permuted":
            monkeypatch.setattr(gguf_bitnet, "quantize_weight", permuted(gguf_bitnet.quantize_weight))
        case "no_sub_norms":
            monkeypatch.setattr(gguf_bitnet, "read", no_sub_norms(gguf_bitnet.read))
    write_bitnet(small[1], tmp_path / "model.gguf", linear_type, "F16")
    parity = measure_parity(small[1], tmp_path / "model.gguf", sequences, threads=1)
    assert parity.mean_kl > 10 * parity.largest_kl(BOUNDS)
    with pytest.raises(ValueError, match="does not compute what was trained"):
        parity.check(BOUNDS, "model.gguf")


def test_the_original_computes_the_same_as_a_llama_file(small, tmp_path, sequences):
    write_original(small[0], tmp_path / "original.gguf")
    engine = open_model(tmp_path / "original.gguf", context=128, threads=1, all_logits=True)
    model = load_original(small[0], torch.float32)
    for sequence in sequences:
        with torch.no_grad():
            expected = training_logits(model, sequence)
        assert torch.allclose(torch.from_numpy(logits_of(engine, sequence)), expected, atol=0.02)
