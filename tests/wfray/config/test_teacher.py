"""What a teacher's configuration refuses before anything is deployed."""

from typing import Any

import pytest

from wfray.config.teacher import Autoscaling, TeacherConfig

MODEL = {"kind": "directory", "path": "somewhere"}


def config(**changes: Any) -> TeacherConfig:
    return TeacherConfig.parse({"model": MODEL, **changes}, "test")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_wire_that_an_engine_cannot_give_is_refused(engine: str) -> None:
    promised = {"engine": engine, "python": "/engines/bin/python"}
    assert config(**promised, wires=["hidden", "topk", "sampled", "logits"]).engine == engine
    with pytest.raises(
        ValueError, match=f"engine {engine} cannot give layers, qkv, only hidden, topk, sampled, logits: .* engine=transformers"
    ):
        config(**promised, wires=["hidden", "layers", "qkv"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm"}, "engine vllm needs python"),
        ({"python": "/usr/bin/python3"}, "python belongs to the engines vllm and sglang"),
        ({"engine_arguments": ["--fast"]}, "engine_arguments belong to the engines vllm and sglang"),
        ({"num_replicas": {"min_replicas": 3, "max_replicas": 2}}, "max_replicas 2 is less than min_replicas 3"),
        ({"wires": []}, "wires: List should have at least 1 item"),
        ({"application": "my teacher"}, "application: String should match pattern"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_replicas_are_a_number_or_follow_the_load() -> None:
    assert config(num_replicas=3).num_replicas == 3
    assert config(num_replicas={"max_replicas": 4}).num_replicas == Autoscaling(min_replicas=1, max_replicas=4)
