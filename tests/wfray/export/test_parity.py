"""The exported file computes what was trained, in every type; and each known way to get it wrong is found out."""

import json
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from pydantic import TypeAdapter

import wfray.export.gguf_bitnet as gguf_bitnet
import wfray.export.reference as reference
from tests.wfray.export.conftest import VOCABULARY
from wfray.config.export import Format, Parity
from wfray.export.formats import open_engine, write_format
from wfray.export.llama_cpp import logits_of, open_model
from wfray.export.llama_cpp_run import LlamaCppRun
from wfray.export.original import write_original
from wfray.export.parity import MeasuredParity, measure_parity
from wfray.export.widen import widen
from wfray.student import load_original

BOUNDS = Parity()


@pytest.fixture(scope="module")
def sequences(tokenizer, texts) -> list[list[int]]:
    """Real text and random tokens: enough that a near-tie of the likeliest two is not yet a percent."""
    random = np.random.default_rng(0).integers(0, VOCABULARY, (2, 100)).tolist()
    return [tokenizer(text)["input_ids"] for text in texts] + random


def wanted(**options) -> Format:
    return TypeAdapter(Format).validate_python({"kind": "gguf", **options})


def export(student, directory, sequences, asked: Format, judged=None) -> MeasuredParity:
    """Write a student and measure it, against another one if given."""
    target = directory / asked.path
    write_format(student, target, asked)
    with open_engine(student, target, asked, 128, threads=1) as engine:
        return measure_parity(judged or student, engine, sequences, threads=1)


HUGGING_FACE = [
    ("even", {"kind": "huggingface", "path": "hf", "form": "packed"}),
    ("narrow, other eps", {"kind": "huggingface", "path": "hf", "form": "packed"}),
    ("narrow, other eps", {"kind": "huggingface", "path": "hf", "form": "unpacked"}),
    ("narrow", {"kind": "huggingface", "path": "hf", "form": "latent"}),
]
CASES = [
    ("even", {"linear_type": "Q4_0"}),
    ("even", {"linear_type": "TQ2_0", "embedding_type": "Q6_K"}),
    ("narrow", {"linear_type": "Q4_0"}),
    ("narrow", {"linear_type": "Q4_0", "embedding_type": "Q6_K"}),
    ("narrow", {"linear_type": "Q4_0", "embedding_type": "Q5_0"}),
    ("narrow", {"linear_type": "TQ2_0"}),
    ("narrow", {"linear_type": "TQ1_0", "embedding_type": "Q8_0"}),
    ("narrow", {"linear_type": "F16"}),
    ("narrow, other eps", {"linear_type": "TQ2_0"}),
    ("narrow, other eps", {"kind": "i2_s", "layout": "x86"}),
    ("even", {"kind": "i2_s", "layout": "arm"}),
]


@pytest.mark.parametrize(("size", "options"), CASES + HUGGING_FACE)
def test_a_file_computes_what_was_trained(build, tmp_path, sequences, size, options):
    _, student = build(size)
    parity = export(student, tmp_path, sequences, wanted(**options))
    parity.check(BOUNDS, "model.gguf")
    assert parity.mean_kl < 1e-4
    assert parity.num_tokens == sum(len(sequence) for sequence in sequences)
    assert math.isclose(parity.perplexity_file, parity.perplexity_training, rel_tol=0.02)


def test_the_engine_rounds_otherwise_than_training_and_the_gap_is_reported(build, tmp_path, sequences):
    _, student = build("even")
    parity = export(student, tmp_path, sequences, wanted(linear_type="Q4_0"))
    assert parity.own_mean_kl > 5 * parity.mean_kl
    assert parity.own_top1_agreement <= parity.top1_agreement


def test_a_widened_hidden_axis_leaves_the_function_as_it_was(build, tmp_path, sequences, monkeypatch):
    """In float16, without int8 activations between: widened to 768 channels of which 96 are used, against 96."""
    _, student = build("narrow, other eps")
    write_format(student, tmp_path / "plain.gguf", wanted(linear_type="F16"))
    monkeypatch.setattr(gguf_bitnet, "widen", lambda shape, eps, *multiples: widen(shape, eps, 256, 256))
    widened = write_format(student, tmp_path / "widened.gguf", wanted(linear_type="F16"))
    assert (widened.hidden, widened.hidden_stored) == (96, 768)
    engines = (open_model(tmp_path / f"{name}.gguf", context=128, threads=1, all_logits=True) for name in ("plain", "widened"))
    plain_TV, widened_TV = (logits_of(engine, sequences[0]) for engine in engines)
    assert np.abs(plain_TV - widened_TV).max() < 5e-3 * np.abs(plain_TV).max()


def stored_types(path) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in GGUFReader(path).tensors}


def test_no_tensor_is_stored_in_another_type_than_asked(build, tmp_path):
    _, student = build("narrow")
    write_format(student, tmp_path / "model.gguf", wanted(linear_type="TQ2_0", embedding_type="Q8_0"))
    stored = stored_types(tmp_path / "model.gguf")
    assert stored["token_embd.weight"] == ("Q8_0", [768, VOCABULARY])
    assert stored["blk.1.ffn_down.weight"] == ("TQ2_0", [512, 768])
    assert stored["blk.0.attn_k.weight"] == ("TQ2_0", [768, 256])
    assert {kind for name, (kind, shape) in stored.items() if len(shape) == 2 and name.startswith("blk.")} == {"TQ2_0"}
    assert {kind for kind, shape in stored.values() if len(shape) == 1} == {"F32"}


def latent(name, weights, source, size, gain, storage):
    """The mistake of writing what was trained on instead of what was trained."""
    return gguf_bitnet.planned_matrix(name, size, "F16", lambda start, end: gguf_bitnet.read(weights, source)[start:end])


def inverted(quantize_weight):
    """The mistake of dividing by the scale."""
    return lambda weight: (quantize_weight(weight)[0], 1 / quantize_weight(weight)[1])


def permuted(quantize_weight):
    """The mistake of writing q and k for the other RoPE layout."""

    def make(weight):
        codes, scale = quantize_weight(weight)
        if codes.shape[1] != 64 or codes.shape[0] not in (32, 64):
            return codes, scale
        return codes.view(-1, 2, 16, codes.shape[1]).transpose(1, 2).reshape(codes.shape), scale

    return make


def no_sub_norms(read):
    """The mistake of leaving SubLN out (weight 1)."""
    return lambda weights, name: np.ones_like(read(weights, name)) if "_proj.norm" in name else read(weights, name)


MISTAKES = {
    "latent": ("planned_ternary", lambda original: latent),
    "inverted": ("quantize_weight", inverted),
    "permuted": ("quantize_weight", permuted),
    "no_sub_norms": ("read", no_sub_norms),
}


def test_logits_that_are_no_numbers_miss_the_bounds_wherever_they_are(small, tmp_path, sequences, monkeypatch):
    """At one position of each sequence: its top-1 bound alone would let that pass."""
    run = LlamaCppRun.run

    def spoiled(engine, sequence):
        seen = run(engine, sequence)
        seen.logits_TV[len(sequence) // 2] = math.nan
        return seen

    monkeypatch.setattr(LlamaCppRun, "run", spoiled)
    parity = export(small[1], tmp_path, sequences, wanted(linear_type="Q4_0"))
    assert math.isnan(parity.mean_kl) and math.isfinite(parity.perplexity_training)
    with pytest.raises(ValueError, match="does not compute what was trained"):
        parity.check(BOUNDS, "model.gguf")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_writing_miss_the_bounds(small, tmp_path, sequences, monkeypatch, mistake):
    name, make = MISTAKES[mistake]
    monkeypatch.setattr(gguf_bitnet, name, make(getattr(gguf_bitnet, name)))
    parity = export(small[1], tmp_path, sequences, wanted(linear_type="F16" if mistake == "latent" else "Q4_0"))
    assert parity.mean_kl > 10 * BOUNDS.max_mean_kl
    with pytest.raises(ValueError, match="does not compute what was trained"):
        parity.check(BOUNDS, "model.gguf")


def test_a_student_of_another_activation_misses_the_bounds(small, edited, tmp_path, sequences):
    """llama.cpp's `bitnet` has SiLU; a student that was trained with another activation would be computed wrongly."""
    trained = edited(small[1], hidden_act="relu2")
    parity = export(small[1], tmp_path, sequences, wanted(), judged=trained)
    with pytest.raises(ValueError, match="does not compute what was trained"):
        parity.check(BOUNDS, "model.gguf")


def test_a_student_with_a_head_of_its_own_misses_the_bounds(small, edited, tmp_path, sequences, monkeypatch):
    """`bitnet` ties the head to the embedding; a trained head that differs would be lost."""
    head = reference.lm_head_weight
    monkeypatch.setattr(reference, "lm_head_weight", lambda model: head(model).roll(1, 0))
    parity = export(small[1], tmp_path, sequences, wanted())
    with pytest.raises(ValueError, match="does not compute what was trained"):
        parity.check(BOUNDS, "model.gguf")


def test_a_slightly_wrong_scale_is_seen(small, tmp_path, sequences, monkeypatch):
    """2% on every matrix is far below what rounding does, and yet no rounding of activations explains it."""
    quantize = gguf_bitnet.quantize_weight
    monkeypatch.setattr(gguf_bitnet, "quantize_weight", lambda weight: (quantize(weight)[0], quantize(weight)[1] * 1.02))
    right = export(small[1], tmp_path, sequences, wanted(path="wrong.gguf")).mean_kl
    monkeypatch.undo()
    assert right > 20 * export(small[1], tmp_path, sequences, wanted()).mean_kl


@contextmanager
def opened(path):
    engine = open_model(path, context=128, threads=1, all_logits=True)
    yield engine
    engine.close()


def test_the_original_computes_the_same_as_a_llama_file(small, tmp_path, sequences):
    write_original(small[0], tmp_path / "original.gguf")
    model = load_original(small[0], torch.float32)
    with opened(tmp_path / "original.gguf") as engine:
        for sequence in sequences:
            with torch.no_grad():
                expected = reference.training_logits(model, [sequence])
            assert torch.allclose(torch.from_numpy(logits_of(engine, sequence)), expected, atol=0.02)


def test_stock_llama_cpp_refuses_a_file_for_bitnet_cpp(build, tmp_path):
    """Its type ids mean something else there, or nothing: the file must not load and talk nonsense."""
    _, student = build("even")
    write_format(student, tmp_path / "model-i2_s.gguf", wanted(kind="i2_s"))
    with pytest.raises(ValueError, match="cannot load"):
        open_model(tmp_path / "model-i2_s.gguf", context=128, threads=1)


def test_figures_are_json(small, tmp_path, sequences):
    parity = export(small[1], tmp_path, sequences[:1], wanted())
    assert json.loads(json.dumps(vars(parity))) == vars(parity)
