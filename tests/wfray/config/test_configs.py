"""Every file under configs/ is valid, and mistakes are named with the mend."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from jobs.stages import CONFIGS
from wfray.config.base import Config, read_tree, read_yaml
from wfray.config.cluster import ClusterConfig
from wfray.config.cluster_prices import PriceTable
from wfray.config.data import Source
from wfray.config.model import ModelSource
from wfray.config.pipeline import PipelineConfig
from wfray.config.train import TrainConfig

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


class NamedModel(Config):
    model: ModelSource


def config_type_of(path: Path) -> type[Config]:
    if path.parent.name == "cluster":
        return PriceTable if path.stem == "prices" else ClusterConfig
    return PipelineConfig if path.parent.name == "configs" else CONFIGS[path.parent.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_valid_and_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    if path.parent.name == "models":
        NamedModel.parse({"model": read_yaml(path)}, str(path))
        return
    if path.parent.name == "data":
        TypeAdapter(list[Source]).validate_python(read_tree(path))
        return
    config_type = config_type_of(path)
    config = config_type.load(path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(config.to_yaml())
    assert config_type.load(resolved) == config
    assert config_type.load(resolved).digest() == config.digest()


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "configs"], ids=lambda path: path.name)
def test_pipelines_name_configurations_that_exist(path: Path) -> None:
    for call in PipelineConfig.load(path).stages:
        assert (ROOT / call.config).is_file(), call


def load(*overrides: str) -> TrainConfig:
    return TrainConfig.load(ROOT / "configs/distill/quickstart.yaml", list(overrides))


def test_overrides_replace_values_and_list_elements() -> None:
    config = load("train.tokens=20480", "objectives.1.temperature=2.5", "quantization.schedule=linear", "quantization.warmup_tokens=2048")
    assert config.train.tokens == 20480
    assert config.objectives[1].temperature == 2.5  # type: ignore[union-attr]
    assert config.digest() != load().digest()


def test_where_a_run_is_kept_does_not_change_what_a_stage_is() -> None:
    assert load("run=/elsewhere").digest() == load().digest()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.tokns=1", r"train.tokns: unknown key; did you mean 'tokens'\?"),
        ("train.tokens=many", "train.tokens: Input should be a valid integer.*'many'"),
        ("train.tokens=10", r"train: tokens 10 is less than one step \(batch_tokens 512\)"),
        ("train.tokens", "must look like key=value"),
        ("objectives=[1", r"override 'objectives=\[1': '\[1' is no value in YAML"),
        ("objectives.7.weight=1", "'7' does not exist"),
        ("teacher=null", "objectives attention_relations, logits_kl need a teacher"),
        ("quantization.warmup_tokens=99999999", "warmup_tokens"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(override)


def test_a_missing_file_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match="does not exist; there are: .*configs/distill/quickstart.yaml"):
        TrainConfig.load(ROOT / "configs/distill/no.yaml")
