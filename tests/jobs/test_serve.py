"""Which file of an export is served."""

from pathlib import Path

import pytest

from jobs.serve import model_file
from wfray.config.export import ExportConfig
from wfray.config.serve import ServedModel
from wfray.runs import Stage


def exported(run: Path, *formats: dict[str, str]) -> Path:
    """An export stage of these formats, which hold nothing."""
    for name in ("student", "pack"):
        (run / name).mkdir(parents=True, exist_ok=True)
    tree = {"run": str(run), "student": "student", "original": None, "formats": list(formats)}
    with Stage.of(ExportConfig.parse(tree, "test")) as stage:
        stage.figures["model"], *stage.figures["others"] = formats
        for wanted in formats:
            (stage.directory / wanted["path"]).write_text(wanted["kind"])
    return stage.directory


def test_it_is_the_first_format_whatever_else_lies_there(tmp_path: Path) -> None:
    export = exported(tmp_path, {"kind": "gguf", "path": "small.gguf"}, {"kind": "gguf", "path": "model.gguf"})
    assert model_file(export, ServedModel(name="a")) == export / "small.gguf"
    assert model_file(export / "model.gguf", ServedModel(name="a")) == export / "model.gguf"
    assert model_file(export, ServedModel(name="a", engine="transformers")) == export


def test_a_first_format_that_is_no_gguf_file_is_not_passed_over(tmp_path: Path) -> None:
    export = exported(tmp_path, {"kind": "huggingface", "path": "huggingface"}, {"kind": "gguf", "path": "model.gguf"})
    with pytest.raises(ValueError, match=r"model 'a': .*huggingface' is no GGUF file, which llama_cpp takes: set its file"):
        model_file(export, ServedModel(name="a"))
