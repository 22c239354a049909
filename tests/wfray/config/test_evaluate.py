"""Refusals of the evaluation's configuration, and the files under configs/."""

from pathlib import Path
from typing import Any

import pytest

from wfray.config.evaluate import EvaluateConfig

FILES = sorted((Path(__file__).parents[3] / "configs" / "evaluate").glob("*.yaml"))
TREE: dict[str, Any] = {"run": "runs/x", "subjects": [{"name": "teacher", "kind": "original", "reference": "convert"}]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_valid_and_names_each_parent(path: Path) -> None:
    config = EvaluateConfig.load(path)
    placed = {subject.name for subject in config.subjects if subject.kind in ("original", "student", "diffusion", "gguf")}
    assert set(config.parents) == ({"corpus"} if config.corpus else set()) | placed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": TREE["subjects"] * 2}, "share the name teacher"),
        ({"subjects": [{**TREE["subjects"][0], "name": "corpus"}]}, "cannot be named corpus"),
        ({"subjects": []}, "at least 1"),
        ({"corpus": None}, "so add `harness`"),
        ({"subjects": [{"name": "file", "kind": "gguf", "file": "export/model.gguf"}]}, "so add `harness`"),
        ({"harness": {}}, "names no tasks"),
        ({"harness": {"preset": "everything"}}, "smoke"),
        ({"harness": {"preset": "smoke", "compare": [["teacher", "student"]]}}, "names student"),
        ({"corpus": None, "harness": {"preset": "smoke"}, "classification": [{"source": "a", "labels": ["b", "c"]}]}, "read a corpus"),
        ({"subjects": [{"name": "api", "kind": "endpoint", "url": "127.0.0.1:80", "model": "m", "tokenizer": "t"}]}, "pattern"),
        ({"continuations": {"subjects": ["student"]}}, "names student, but the subjects are teacher"),
        ({"rows": 3}, "rows: unknown key"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig.parse({**TREE, **change}, origin="a test")


def test_a_directory_in_the_hubs_format_is_an_input_and_a_name_on_the_hub_is_none() -> None:
    subjects = [{"name": name, "kind": "hub", "id": id} for name, id in (("local", "/models/mine"), ("hub", "org/model"))]
    config = EvaluateConfig.parse({"run": "r", "corpus": None, "subjects": subjects, "harness": {"preset": "smoke"}}, "test")
    assert config.parents == {"local": "/models/mine"}
