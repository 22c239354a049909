"""Students on disk: what is loaded is what was saved, in one file or in shards, and what is not whole is refused with the mend."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.wfray.student.conftest import SHAPE, WINDOWED, rough_model
from wfray.config.convert import Subln
from wfray.student import convert, hidden_states, load_original, load_student, save_student
from wfray.student.checkpoint import empty_model
from wfray.student.families import FAMILIES


def save(directory: Path, **options: int) -> Path:
    save_student(convert(rough_model("qwen3"), Subln(init="ones")), directory, tokenizer_from=directory.parent, **options)
    return directory


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "student")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save(tmp_path / "sharded", max_shard_bytes=20_000)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_loaded_student_computes_the_same_to_the_bit(family: str, tmp_path: Path, packed: dict[str, Tensor]) -> None:
    student = convert(rough_model(family, **WINDOWED.get(family, {})), Subln(init="ones"))
    save_student(student, tmp_path / "student", tokenizer_from=tmp_path)
    assert torch.equal(hidden_states(load_student(tmp_path / "student"), packed), hidden_states(student, packed))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_original_computes_what_transformers_computes(family, dtype, tmp_path: Path, packed: dict[str, Tensor]) -> None:
    rough_model(family).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation="segments").eval()
    assert torch.equal(hidden_states(load_original(tmp_path, dtype), packed), hidden_states(plain, packed))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_empty_model_has_its_buffers(family: str) -> None:
    model = rough_model(family)
    empty = empty_model(model.config, torch.float32)
    assert all(parameter.is_meta for parameter in empty.parameters())
    wanted = dict(model.named_buffers())
    assert wanted and {name: buffer.tolist() for name, buffer in empty.named_buffers()} == {n: b.tolist() for n, b in wanted.items()}


def test_a_student_in_shards_is_the_student_in_one_file(saved: Path, sharded: Path) -> None:
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    one, several = load_student(saved).state_dict(), load_student(sharded).state_dict()
    assert one.keys() == several.keys() and all(torch.equal(one[name], several[name]) for name in one)


def test_equal_students_are_equal_files(sharded: Path, tmp_path: Path) -> None:
    again = save(tmp_path / "again", max_shard_bytes=20_000)
    names = sorted(path.name for path in sharded.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert all((sharded / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_a_student_of_another_format_is_refused(saved: Path) -> None:
    described = json.loads((saved / "config.json").read_text())["wrinklefree"]
    change_json(saved / "config.json", wrinklefree={**described, "format": 2})
    with pytest.raises(ValueError, match="student of format 2, this version reads format 1: convert the original again"):
        load_student(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    change_json(saved / "config.json", intermediate_size=64)
    with pytest.raises(ValueError, match=r"do not fit its config.json: .*gate_proj.weight is \(48, 32\).*take both from one place"):
        load_student(saved)


def test_missing_and_unexpected_tensors_are_refused_by_name(saved: Path) -> None:
    change_json(saved / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(ValueError, match=r"missing \['model.layers.2.input_layernorm.weight', .*run the stage that makes them again"):
        load_student(saved)
    change_json(saved / "config.json", num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(ValueError, match=r"unexpected \['model.layers.1.input_layernorm.weight', "):
        load_student(saved)


def test_a_model_that_is_no_student_is_refused(tmp_path: Path) -> None:
    rough_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a student .*convert it with jobs.convert"):
        load_student(tmp_path)
    assert load_original(tmp_path).config.num_hidden_layers == SHAPE["num_hidden_layers"]


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    rough_model("llama").save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(ValueError, match="quantized weights; name a checkpoint in float32"):
        load_original(tmp_path)
