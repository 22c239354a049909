"""The pack configuration: what is refused, and the files under configs/pack."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wfray.config.data import PackConfig

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "pack").glob("*.yaml"))


@pytest.fixture
def tree() -> dict[str, Any]:
    """A configuration of two sources."""
    sources = [
        {"name": name, "kind": "text_files", "path": "/texts", "licence": "CC0-1.0", "weight": 1.0, "max_tokens": 1000}
        for name in ("one", "two")
    ]
    tokenizer = {"kind": "directory", "path": "/model"}
    return {"run": "r", "tokenizer": tokenizer, "sequence_length": 64, "heldout_rows": 2, "sources": sources}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_is_valid_and_states_licences(path: Path) -> None:
    config = PackConfig.load(path)
    assert len(config.sources) >= 3
    assert len({source.kind for source in config.sources}) >= 3
    assert all(source.licence and source.weight > 0 for source in config.sources)


def test_the_digest_ignores_the_run_directory(tree: dict[str, Any]) -> None:
    config = PackConfig.parse(tree, "test")
    assert PackConfig.parse({**tree, "run": "elsewhere"}, "test").digest() == config.digest()
    assert PackConfig.parse({**tree, "seed": 1}, "test").digest() != config.digest()
    assert PackConfig.parse(yaml.safe_load(config.to_yaml()), "test") == config
    assert config.parents == {"one": "/texts", "two": "/texts"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "two"}, "two names more than one source"),
        ({"name": "Two words"}, "name"),
        ({"licence": ""}, "licence"),
        ({"weight": -1.0}, "weight"),
        ({"kind": "parquet"}, "parquet"),
        ({"max_tokens": 63}, "source one: max_tokens 63 is less than one row of 64"),
        ({"globb": "*"}, "unknown key; did you mean 'glob'"),
    ],
)
def test_bad_sources_are_refused(tree: dict[str, Any], change: dict[str, Any], message: str) -> None:
    tree["sources"][0].update(change)
    with pytest.raises(ValueError, match=message):
        PackConfig.parse(tree, "test")


def test_a_source_must_state_its_licence(tree: dict[str, Any]) -> None:
    del tree["sources"][0]["licence"]
    with pytest.raises(ValueError, match=r"licence: Field required"):
        PackConfig.parse(tree, "test")


def test_weight_zero_is_allowed_for_some_sources_only(tree: dict[str, Any]) -> None:
    tree["sources"][0]["weight"] = 0
    PackConfig.parse(tree, "test")
    tree["sources"][1]["weight"] = 0
    with pytest.raises(ValueError, match="every weight is 0"):
        PackConfig.parse(tree, "test")
