"""Students on disk: what is loaded is what was saved, and what is not whole is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.wfray.student.conftest import SHAPE, tiny_model
from wfray.config.convert import Subln
from wfray.config.model import Architecture, LocalModel
from wfray.student import convert, hidden_states, load_original, load_student, save_student
from wfray.student.original import architecture_of, check_architecture, read_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_student(convert(tiny_model("qwen3"), Subln(init="ones")), tmp_path / "student", tokenizer_from=tmp_path)
    return tmp_path / "student"


def test_a_loaded_student_computes_the_same_to_the_bit(saved: Path, packed: dict[str, Tensor]) -> None:
    wanted = hidden_states(convert(tiny_model("qwen3"), Subln(init="ones")), packed)
    assert torch.equal(hidden_states(load_student(saved), packed), wanted)


def test_truncated_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or foreign"):
        load_student(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        load_student(saved)


def test_a_model_that_is_no_student_is_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a student"):
        load_student(tmp_path)
    assert load_original(tmp_path).config.num_hidden_layers == SHAPE["num_hidden_layers"]


def test_an_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="'gpt2' cannot become students; known families: llama"):
        read_model(LocalModel(kind="directory", path=str(tmp_path)))


def test_another_architecture_is_refused_with_every_difference() -> None:
    found = architecture_of(tiny_model("llama").config)
    assert (found.head_dim, found.hidden_size) == (16, 32)
    wanted = Architecture.model_validate({**found.model_dump(), "num_layers": 30, "hidden_size": 576})
    with pytest.raises(ValueError, match=r"num_layers is 2, not 30; hidden_size is 32, not 576"):
        check_architecture(tiny_model("llama").config, wanted)
