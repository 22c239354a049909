"""Cluster configurations: what is refused, and why; attempts to get a GPU on GCP."""

from pathlib import Path
from typing import Any

import pytest

from wfray.config.cluster import ClusterConfig

CONFIGS = Path(__file__).parents[3] / "configs" / "cluster"


def load(name: str, *overrides: str) -> ClusterConfig:
    return ClusterConfig.load(CONFIGS / f"{name}.yaml", list(overrides))


def test_roles_and_their_gpus() -> None:
    assert load("nebius").roles == {"student": 8, "teacher": 1, "data": 0, "evaluate": 1, "serve": 0}


@pytest.mark.parametrize(
    "overrides",
    [
        ["provider.kind=gcp"],
        ["provider.kind=GCP"],
        ["provider.kind=' Google '"],
        ["provider=gcp"],
        ["provider={kind: gcp, region: us-central1}"],
    ],
)
def test_a_gpu_on_gcp_is_refused_with_the_reason(overrides: list[str]) -> None:
    with pytest.raises(ValueError, match="GPU machines on GCP are refused.*Set provider.kind to nebius or runpod"):
        load("nebius", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["provider.region=gcp/us-central1"],
        ["provider.cloud=gcp"],
        ["provider.kind=kubernetes"],
        ["groups.student.infra=gcp"],
        ["groups.student.accelerators=['gcp/H100:8']"],
        ["groups.student.accelerators=[{infra: gcp, accelerators: H100}]"],
        ["head.accelerators=['H100:1']"],
    ],
)
def test_no_other_way_leads_there(overrides: list[str]) -> None:
    with pytest.raises(ValueError):
        load("nebius", *overrides)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("nebius", "groups.student.max_nodez=1", r"unknown key; did you mean 'max_nodes'\?"),
        ("nebius", "groups.student.accelerators=['H100:9']", "must look like H100:8"),
        ("nebius", "groups.student.accelerators=['H100:8', 'H200:1']", "same number of GPUs"),
        ("nebius", "groups.teacher.nodes_together=2", "needs InfiniBand"),
        ("nebius", "groups.student.min_nodes=3", "more than max_nodes"),
        ("nebius", "groups.data.role=student", "more than one group has the role student"),
        ("nebius", "name='wf*'", "pattern"),
        ("nebius", "head=null", "give `head` and `groups`"),
        ("runpod", "groups={student: {role: student, cpus: 1}}", "one pod is the whole cluster"),
        ("runpod", "secrets=['sk-12345']", "pattern"),
        ("runpod", "storage=/local", "pattern"),
        ("nebius_infiniband", "groups.student.max_nodes=3", "not a multiple of nodes_together"),
    ],
)
def test_mistakes_are_named(name: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, override)


def test_storage_on_google_is_no_gpu_on_google() -> None:
    assert load("nebius", "storage=gs://bucket/runs").storage == "gs://bucket/runs"


def test_what_is_given_in_code_is_checked_too() -> None:
    tree: dict[str, Any] = {"name": "a", "provider": {"kind": "gcp"}, "limits": {"max_dollars": 1, "max_dollars_per_hour": 1}}
    with pytest.raises(ValueError, match="GCP"):
        ClusterConfig.model_validate(tree)
