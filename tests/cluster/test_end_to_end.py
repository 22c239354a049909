"""The tiny pipeline on a cluster that starts with a head alone, grows by demand, loses a spot machine in mid-training, and shrinks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import ROOT, FakeCloud, start_head, state, tiny_config, wait_for
from wfray.runs import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]
NUM_STEPS = 800
"""Long enough for a notice to come in the middle; no checkpoint is due before the end."""
TRAINING = {"train.tokens": 256 * NUM_STEPS, "train.checkpoint_every_tokens": 10**9}
STAGES = ("pack", "teacher", "convert", "align", "pretrain")


def pipeline_file(directory: Path, address: str) -> Path:
    """The tiny pipeline up to a longer pre-training, in a run directory of its own, on a running cluster."""
    tree = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())
    tree |= {"run": str(directory / "run"), "cluster": None, "address": address}
    tree["stages"] = [call for call in tree["stages"] if call["job"] in STAGES]
    for call in tree["stages"]:
        if call["job"] == "pretrain":
            call["set"] = TRAINING
    directory.mkdir(parents=True)
    path = directory / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.pipeline", "--config", str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate(timeout=1000)
    assert process.returncode == 0, output


def losses(directory: Path, stage: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(directory / "run" / stage / "metrics.jsonl")}


def test_it(cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {
        role: {"role": role, "cpus": 1, "max_nodes": 1, "idle_minutes": 3, "spot": role == "student", "object_store_gb": 0.1}
        for role in ("student", "teacher")
    }
    config = tiny_config(groups=groups, head={"cpus": 2, "object_store_gb": 0.2})
    head = start_head(config, tmp_path, monkeypatch)
    dashboard = f"http://127.0.0.1:{os.environ['WF_DASHBOARD_PORT']}"
    directory = tmp_path / "run"
    wait_for(lambda: (cloud.home / head / ".wfray/head/state.json").exists())
    assert cloud.clusters == [head]
    wait_for(lambda: answers(dashboard), 300)
    run = start(pipeline_file(directory, dashboard))

    wait_for(lambda: len(losses(directory, "pretrain")) >= 10, 900, run)
    assert cloud.clusters == [head, "wf-tiny-student-2", "wf-tiny-teacher-1"]
    at_notice = max(losses(directory, "pretrain"))
    (cloud.home / "wf-tiny-student-2" / "wfray-notice").touch()
    checkpoints = directory / "run/pretrain/checkpoints"
    wait_for(lambda: bool(list(checkpoints.glob("step-*"))), 200, run)
    saved = int(max(checkpoints.glob("step-*")).name.removeprefix("step-"))
    assert at_notice <= saved < NUM_STEPS
    cloud.kill("wf-tiny-student-2")
    finish(run)

    assert "wf-tiny-student-3" in cloud.clusters and "wf-tiny-student-2" not in cloud.clusters
    undisturbed = ["jobs.pretrain", "--config", "configs/pretrain/tiny.yaml", f"run={directory}/run", "stage=undisturbed", *values()]
    job(dashboard, *undisturbed)
    assert len(losses(directory, "pretrain")) == NUM_STEPS
    assert losses(directory, "pretrain") == losses(directory, "undisturbed"), "the same losses at the same steps"
    weights = [(directory / "run" / stage / "student/model.safetensors").read_bytes() for stage in ("pretrain", "undisturbed")]
    assert weights[0] == weights[1]

    job(dashboard, "jobs.teacher", "--config", "configs/teacher/tiny.yaml", "--delete")
    wait_for(lambda: cloud.clusters == [head] and not state(cloud, head).nodes, 600)
    assert {call[-1] for call in cloud.calls("down")} == {"wf-tiny-teacher-1", "wf-tiny-student-2", "wf-tiny-student-3"}


def values() -> list[str]:
    """The longer training as overrides."""
    return [f"{name}={value}" for name, value in TRAINING.items()]


def job(dashboard: str, module: str, *arguments: str) -> None:
    """Run a job to its end."""
    command = ["ray", "job", "submit", "--address", dashboard, "--working-dir", ".", "--", "python", "-m", module, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr


def answers(dashboard: str) -> bool:
    """Whether jobs run; asked by processes of their own, since this one has begun with another way to authenticate."""
    command = ["ray", "job", "submit", "--address", dashboard, "--", "true"]
    return subprocess.run(command, cwd=ROOT / "configs", capture_output=True).returncode == 0
