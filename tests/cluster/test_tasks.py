"""What is launched: owners, backstops and secrets in every file, and no way to GCP."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import sky, tasks
from cluster.autoscaling import autoscaling_config
from cluster.identity import Owner
from tests.cluster.conftest import ROOT
from wfray.config.cluster import ClusterConfig

OWNER = Owner(name="Ana B.", key="a" * 64)


def load(name: str, *overrides: str) -> ClusterConfig:
    return ClusterConfig.load(ROOT / "configs/cluster" / f"{name}.yaml", list(overrides))


def all_tasks() -> list[dict[str, Any]]:
    """Every task of every configuration."""
    configs = [load(name) for name in ("nebius", "nebius_infiniband", "runpod")]
    first = [tasks.first_task(config, OWNER) for config in configs]
    return first + [tasks.worker_task(config, OWNER, group, "wf-x-1") for config in configs for group in config.groups]


def test_every_machine_deletes_itself_when_it_is_forgotten_and_says_whose_it_is() -> None:
    for task in all_tasks():
        assert task["resources"]["autostop"] == {"idle_minutes": 10, "down": True, "wait_for": "jobs"}
        assert task["resources"]["labels"]["wfray-owner"] == "ana-b-"
        assert Owner.model_validate_json(task["envs"]["WF_OWNER"]) == OWNER


def test_values_of_secrets_are_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "the-value-of-the-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-value-of-the-secret")
    for task in all_tasks():
        assert task["secrets"]["RAY_AUTH_TOKEN"] is None and task["secrets"]["WANDB_API_KEY"] is None
        text = sky.to_yaml(task)
        assert "the-value" not in text
        command = sky.launch_command("wf-x-1", Path("task.yaml"), None, {}, list(task["secrets"]))
        assert "the-value" not in " ".join(command) and "WANDB_API_KEY" in command


def test_alternatives_are_tried_in_the_order_of_preference() -> None:
    config = load("runpod", "provider.regions=[US, CA]")
    options = tasks.pod_task(config, OWNER)["resources"]["ordered"]
    assert [(option["infra"], option["accelerators"]) for option in options] == [
        ("runpod/US", "H100-SXM:8"),
        ("runpod/CA", "H100-SXM:8"),
        ("runpod/US", "H200-SXM:8"),
        ("runpod/CA", "H200-SXM:8"),
    ]


def test_gcloud_is_installed_on_pods_whose_storage_is_google_s() -> None:
    assert "google-cloud-cli" in tasks.pod_task(load("runpod"), OWNER)["setup"]
    assert "google-cloud-cli" not in tasks.pod_task(load("runpod", "storage=s3://bucket/x"), OWNER)["setup"]
    assert "google-cloud-cli" not in tasks.head_task(load("nebius", "storage=gs://bucket/x"), OWNER)["setup"]


def test_the_environment_is_that_of_the_lock_with_the_extras_of_the_role() -> None:
    config = load("nebius_infiniband")
    student, teacher = (tasks.worker_task(config, OWNER, group, "wf-x-1")["setup"] for group in ("student", "teacher"))
    assert "-r requirements.lock" in student and "-r requirements.lock" in teacher
    assert ".[vllm]" in teacher and "vllm" not in student


@pytest.mark.parametrize(
    "resources",
    [
        {"infra": "gcp", "accelerators": "H100:8"},
        {"infra": "GCP/us-central1", "accelerators": "H100:8"},
        {"cloud": "gcp", "instance_type": "a3-highgpu-8g"},
        {"infra": "nebius", "ordered": [{"infra": "nebius", "accelerators": "H100:8"}, {"infra": "gcp", "accelerators": "H100:8"}]},
        {"any_of": [{"accelerators": "H100:8"}]},
        {"accelerators": "H100:8"},
        {"infra": "*", "accelerators": "H100:8"},
        {"infra": "nebius", "cloud": "gcp", "accelerators": "A100:8"},
        {"infra": "kubernetes", "accelerators": "A100:8"},
    ],
)
def test_no_task_that_could_land_on_gcp_is_written(resources: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GCP|name its cloud"):
        sky.write_task(tmp_path / "task.yaml", {"resources": resources})
    assert not (tmp_path / "task.yaml").exists()


def test_scripts_are_written_as_people_read_them() -> None:
    text = sky.to_yaml(all_tasks()[0])
    assert "run: |" in text and "\n  exec python -m cluster.head" in text
    assert yaml.safe_load(text) == all_tasks()[0]


def test_the_autoscaler_knows_every_group_with_its_resource_and_time_out() -> None:
    config = load("nebius")
    types = autoscaling_config(config, OWNER, Path("/d"), "10.0.0.1:6379", Path("/w"))["available_node_types"]
    assert types["student"]["resources"] == {"CPU": 128, "GPU": 8, "student": 1000} and types["student"]["idle_timeout_s"] == 600
    assert types["data"]["resources"] == {"CPU": 32, "data": 1000} and types["data"]["max_workers"] == 4


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("sky.exceptions.NoCloudAccessError: Cloud access is not set up.", "no credentials: .*sky check nebius runpod"),
        ("ValueError: Invalid accelerator 'H1000'", "unknown or unavailable machine"),
        (
            "Trying nebius/eu-north1\nTrying nebius/eu-west1\nResourcesUnavailableError: no",
            "no capacity.*tried: nebius/eu-north1, nebius/eu-west1",
        ),
        ("google.api_core.exceptions.Unauthorized: 401", "refuses the credentials"),
    ],
)
def test_what_skypilot_s_errors_mean(output: str, message: str) -> None:
    assert re.search(message, sky.explain(["sky", "launch"], output))
