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
    assert set(config.parents) == {"corpus", *(subject.name for subject in config.subjects)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": TREE["subjects"] * 2}, "share the name teacher"),
        ({"subjects": [{**TREE["subjects"][0], "name": "corpus"}]}, "cannot be named corpus"),
        ({"subjects": []}, "at least 1"),
        ({"continuations": {"subjects": ["student"]}}, "names student, but the subjects are teacher"),
        ({"rows": 3}, "rows: unknown key"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig.parse({**TREE, **change}, origin="a test")
