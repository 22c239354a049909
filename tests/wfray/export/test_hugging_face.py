"""Directories that plain transformers loads: its class `bitnet` for Llama-shaped students, our code for others; and the student itself."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.wfray.export.conftest import VOCABULARY
from wfray.config.convert import Subln
from wfray.config.export import HuggingFace, Parity
from wfray.config.serve import ServeConfig, ServedModel
from wfray.export.formats import open_engine, write_format
from wfray.export.parity import measure_parity
from wfray.export.reference import training_logits
from wfray.quant import hold_codes, quantize_weight
from wfray.serving.engine import Request, Sampling
from wfray.serving.engines import make_backend
from wfray.serving.transformers_engine import TransformersEngine
from wfray.student import Weights, convert, load_student, save_student
from wfray.student.weights import SINGLE

FAMILIES = {
    "qwen3": {"head_dim": 24},
    "qwen2": {},
    "mistral": {"sliding_window": None},
    "gemma3_text": {"head_dim": 16, "sliding_window": 64},
}


def wanted(form: str) -> HuggingFace:
    return HuggingFace(kind="huggingface", path="hf", form=form)


@pytest.fixture(scope="module")
def make_family(tmp_path_factory, small):
    """A function that writes a random student of a family, with the tiny tokenizer and a placement of SubLN."""

    def make(family: str, placement: str = "output") -> Path:
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            family,
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=family != "mistral",
            initializer_range=0.1,
            **FAMILIES[family],
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        directory = tmp_path_factory.mktemp("families") / "student"
        save_student(convert(model, Subln(placement=placement, init="ones")), directory, tokenizer_from=small[1])
        return directory

    return make


@pytest.mark.parametrize(("family", "placement"), [("qwen3", "output"), ("qwen2", "all"), ("mistral", "none"), ("gemma3_text", "output")])
def test_other_families_compute_what_was_trained_with_our_code(make_family, tmp_path, family, placement):
    student, target = make_family(family, placement), tmp_path / ".hf.partial-12"  # as the job names it until it is proved
    write_format(student, target, wanted("packed"))
    sequences = torch.randint(VOCABULARY, (3, 90), generator=torch.Generator().manual_seed(1)).tolist()
    with open_engine(student, target, wanted("packed"), 128, threads=1) as engine:
        parity = measure_parity(student, engine, sequences, threads=1)
    parity.check(Parity(), "hf")
    assert parity.mean_kl < 1e-6


def test_a_squared_relu_that_llama_cpp_lacks_is_in_the_class_bitnet(build, edited, tmp_path):
    student, target = edited(build("small")[1], hidden_act="relu2"), tmp_path / "hf"
    write_format(student, target, wanted("packed"))
    assert json.loads((target / "config.json").read_text())["model_type"] == "bitnet"
    with open_engine(student, target, wanted("packed"), 128, threads=1) as engine:
        measure_parity(student, engine, [list(range(120))], threads=1).check(Parity(), "hf")


def test_our_code_is_never_run_unless_asked_for(make_family, tmp_path):
    """And a directory that needs it does not load as something else."""
    write_format(make_family("qwen3"), tmp_path / "hf", wanted("packed"))
    with pytest.raises(ValueError, match="trust_remote_code|custom code|wrinklefree"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=False)


def test_a_process_without_this_project_generates_with_our_code(make_family, tmp_path):
    write_format(make_family("qwen3"), tmp_path / "hf", wanted("packed"))
    script = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "hf")!r}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "hf")!r}, trust_remote_code=True)
ids = model.generate(**tokenizer("The sea is", return_tensors="pt"), max_new_tokens=4, do_sample=False)
assert "wfray" not in sys.modules
print(ids.shape[1])
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(result.stdout.splitlines()[-1]) > 4


@pytest.mark.parametrize("form", ["packed", "unpacked"])
def test_plain_transformers_reads_the_students_codes_and_scales(build, tmp_path, form):
    """`autobitlinear` multiplies by the scale where `bitlinear` divides: the values that it multiplies with are compared."""
    _, student = build("small")
    write_format(student, tmp_path / "hf", wanted(form))
    with torch.compiler.set_stance("force_eager"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
        assert type(model).__name__ == "BitNetForCausalLM"
        layer = model.model.layers[1].mlp.up_proj
        inputs = torch.eye(64)
        found = layer(inputs).T
    codes, scale = quantize_weight(Weights(student)["model.layers.1.mlp.up_proj.weight"])
    assert torch.allclose(found, codes * scale, rtol=1e-5, atol=1e-7)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("a b")["input_ids"]


def test_a_packed_file_is_a_quarter_byte_a_weight(build, tmp_path):
    _, student = build("even")
    written = write_format(student, tmp_path / "hf", wanted("packed"))
    assert written.bytes_per_linear_weight == pytest.approx(0.25, abs=1e-3)
    assert written.num_bytes == sum(file.stat().st_size for file in (tmp_path / "hf").iterdir())


def test_the_latent_weights_are_the_students_to_the_bit_and_go_on_training(build, tmp_path):
    _, student = build("small")
    write_format(student, tmp_path / "hf", wanted("latent"))
    copied = tmp_path / "hf" / "student"
    assert (copied / SINGLE).read_bytes() == (student / SINGLE).read_bytes()
    model = load_student(copied).train()
    ids = torch.arange(12)[None]
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_shards_make_the_same_directory(build, tmp_path):
    from wfray.student.weights import write_weights

    _, student = build("small")
    sharded = tmp_path / "sharded"
    shutil.copytree(student, sharded, ignore=lambda *_: [SINGLE])
    write_weights(sharded, Weights(student), torch.float32, max_shard_bytes=30_000)
    for source in (student, sharded):
        write_format(source, tmp_path / f"of-{source.name}", wanted("packed"))
    loaded = [Weights(tmp_path / f"of-{source.name}") for source in (student, sharded)]
    assert loaded[0].keys() == loaded[1].keys() and all(torch.equal(loaded[0][name], loaded[1][name]) for name in loaded[0])


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_student_that_is_not_ternary_is_refused_in_every_form(build, edited, tmp_path, strength):
    _, student = build("small")
    described = {**json.loads((student / "config.json").read_text())["wrinklefree"], "quantization_lambda": strength}
    changed = edited(student, wrinklefree=described)
    for form in ("packed", "unpacked", "latent"):
        with pytest.raises(ValueError, match="quantization off" if strength == 0 else "lambda 0.5"):
            write_format(changed, tmp_path / "hf", wanted(form))


def test_an_unpacked_form_that_transformers_has_no_class_for_is_refused(make_family, tmp_path):
    with pytest.raises(ValueError, match="cannot express the family 'qwen3'.*form: packed or latent"):
        write_format(make_family("qwen3"), tmp_path / "hf", wanted("unpacked"))


@pytest.mark.parametrize("form", ["packed", "unpacked"])
def test_an_export_is_served_by_the_engine_transformers_as_it_was_trained(build, tmp_path, form):
    student, target = build("small")[1], tmp_path / "hf"
    write_format(student, target, wanted(form))
    check_served(student, target, tolerance=0.05)


def test_an_export_with_our_code_is_served_where_its_code_may_be_run(make_family, tmp_path):
    student, target = make_family("qwen3"), tmp_path / "hf"
    write_format(student, target, wanted("packed"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        TransformersEngine(target, context=64, slots=1, threads=1)
    check_served(student, target, tolerance=0.2, trust_remote_code=True)


def check_served(student: Path, target: Path, tolerance: float, **options: bool) -> None:
    """The scores that the engine gives a prompt are the training model's, in float32 or within bfloat16's rounding."""
    engine = TransformersEngine(target, context=64, slots=1, threads=1, **options)
    prompt = list(range(40, 80))
    engine.add(0, Request(prompt=prompt, sampling=Sampling(max_tokens=1), echo=True, num_logprobs=0))
    scores = [score.logprob for _, piece in engine.step() for score in piece.scores][1:40]
    trained = load_student(student)
    hold_codes(trained)
    logprobs_TV = training_logits(trained, [prompt]).log_softmax(-1)
    assert scores == pytest.approx(logprobs_TV[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist(), abs=tolerance)


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang"])
def test_a_student_is_not_served_as_the_model_that_it_was_made_from(build, engine):
    """Transformers would load it without its norms and ternary weights, and say no more than that some weights are left over."""
    model = ServedModel(name="student", engine=engine, python=None if engine == "transformers" else sys.executable)
    config = ServeConfig.parse({"run": "unused", "models": [model.model_dump()]}, origin="test")
    backend = make_backend(model, build("small")[1], config)
    with pytest.raises(ValueError, match="is a student, which would be loaded as a plain llama"):
        asyncio.run(backend.start())
