"""The pack configuration: what is refused, and the files under configs/pack."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wfray.config.data import PackConfig

ROOT = Path(__file__).parents[3] / "configs"
CONFIGS = sorted((ROOT / "pack").glob("*.yaml"))


@pytest.fixture
def tree() -> dict[str, Any]:
    """A configuration of two sources."""
    sources = [
        {"name": name, "kind": "text_files", "path": "/texts", "licence": "CC0-1.0", "weight": 1.0, "max_tokens": 1000}
        for name in ("one", "two")
    ]
    tokenizer = yaml.safe_load((ROOT / "models/smollm2_135m.yaml").read_text())
    return {"run": "r", "tokenizer": tokenizer, "sequence_length": 64, "heldout_rows": 2, "sources": sources}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_is_valid_and_states_licences(path: Path) -> None:
    config = PackConfig.load(path)
    # A mixture, but for the demonstration of block diffusion, which is of conversations alone.
    assert len(config.sources) >= (2 if config.stage == "pack" and path.stem != "diffusion" else 1)
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
        ({"kind": "parquett"}, "parquett"),
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


def test_the_mixes_have_their_shares() -> None:
    mixed = PackConfig.load(ROOT / "pack" / "mixed_pretrain.yaml")
    weights = {source.name: source.weight for source in mixed.sources}
    assert weights == {"dclm": 0.25, "fineweb-edu": 0.35, "github-code": 0.10, "finemath": 0.15, "slimpajama": 0.15}
    assert {source.max_tokens for source in mixed.sources} == {round(weight * 10**10) for weight in weights.values()}
    offline = PackConfig.load(ROOT / "pack" / "offline.yaml")
    assert len({source.kind for source in offline.sources}) >= 5 and not any(source.kind == "hub" for source in offline.sources)
    assert sum(source.weight for source in offline.sources) == pytest.approx(1)


@pytest.mark.parametrize("path", sorted((ROOT / "data").glob("*.yaml")), ids=lambda path: path.name)
def test_every_mix_can_be_included(path: Path, tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "pack.yaml").write_text(yaml.safe_dump({**tree, "sources": {"include": str(path)}}), encoding="utf-8")
    assert PackConfig.load(tmp_path / "pack.yaml").sources


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duplicates": {"kind": "minhash", "threshold": 1.5}}, "threshold"),
        ({"decontamination": {"evaluations": []}}, "evaluations"),
        ({"on_bad_input": "ignore"}, "on_bad_input"),
        ({"packing": "worst_fit"}, "packing"),
    ],
)
def test_bad_options_are_refused(tree: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackConfig.parse({**tree, **change}, "test")


def test_a_filter_must_say_something_and_urls_are_no_parents(tree: dict[str, Any]) -> None:
    rows = {"name": "rows", "kind": "jsonl", "path": "s3://bucket/x", "licence": "own", "weight": 1}
    tree["sources"].append({**rows, "filters": [{"field": "score"}]})
    with pytest.raises(ValueError, match="filter on score: state at_least, at_most or one_of"):
        PackConfig.parse(tree, "test")
    tree["sources"][-1] = rows
    assert PackConfig.parse(tree, "test").parents == {"one": "/texts", "two": "/texts"}


def test_a_local_tokenizer_and_evaluation_files_are_parents(tree: dict[str, Any]) -> None:
    evaluation = {"kind": "text_files", "name": "one", "path": "/questions", "licence": "own", "weight": 0}
    changed = {**tree, "tokenizer": {"kind": "directory", "path": "/model"}, "decontamination": {"evaluations": [evaluation]}}
    expected = {"one": "/texts", "two": "/texts", "evaluations.one": "/questions", "tokenizer.path": "/model"}
    assert PackConfig.parse(changed, "test").parents == expected


def test_conversations_are_not_concatenated_and_name_their_own_fields(tree: dict[str, Any]) -> None:
    chat = {"kind": "instruction", "prompt": "{question}", "response": "{answer}"}
    rows = {"name": "rows", "kind": "jsonl", "path": "/rows", "licence": "own", "weight": 1, "chat": chat}
    tree["sources"].append(rows)
    with pytest.raises(ValueError, match="concatenate would cut conversations .rows."):
        PackConfig.parse({**tree, "packing": "concatenate"}, "test")
    config = PackConfig.parse(tree, "test")
    assert PackConfig.parse(yaml.safe_load(config.to_yaml()), "test") == config
    tree["sources"][-1] = {**rows, "fields": ["question"]}
    with pytest.raises(ValueError, match="source rows: `chat` names the fields"):
        PackConfig.parse(tree, "test")
