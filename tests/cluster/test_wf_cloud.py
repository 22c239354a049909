"""`wf` from its `up` to its `down`, over a real sshd, with a head and a worker that are real Ray nodes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.identity import ClusterRecord, token_of
from tests.cluster.conftest import ROOT, FakeCloud, tiny_config, wait_for, work
from tests.cluster.sshd import Sshd, is_available
from wfray.runs import Manifest

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not is_available(), reason="openssh-server and rsync are not installed"),
]


@pytest.fixture
def head(cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """An sshd on the head-to-be."""
    home = cloud.home / "wf-tiny"
    home.mkdir()
    server = Sshd(tmp_path / "sshd", home)
    server.program(tmp_path / "bin", "wf-tiny")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WF_DASHBOARD_PORT", "8265")
    yield server
    server.stop()


def wf(*argv: str, fails: bool = False) -> str:
    """What it printed."""
    result = subprocess.run([sys.executable, "-m", "cluster.wf", *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_up_submit_status_down(cloud: FakeCloud, head: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"student": {"role": "student", "cpus": 1, "max_nodes": 1, "idle_minutes": 5, "object_store_gb": 0.1}}
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(groups=groups).to_yaml())
    assert "cluster 'tiny' is up" in wf("up", str(path))
    assert ClusterRecord.read("tiny") is not None and cloud.clusters == ["wf-tiny"]
    wait_for(
        lambda: subprocess.run([sys.executable, "-m", "cluster.wf", "runs", "-c", "tiny"], cwd=ROOT, capture_output=True).returncode == 0
    )

    shown = wf("submit", "pack", "--config", "configs/pack/tiny.yaml", "--cloud", "nebius", "--follow", f"run={tmp_path}/run")
    assert "tokens packed in" in shown and Manifest.read(tmp_path / "run" / "pack").status == "complete"  # type: ignore[union-attr]
    assert "pack" in wf("runs", "--cluster", "tiny")

    monkeypatch.setenv("RAY_AUTH_TOKEN", token_of("tiny"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    work()
    assert "wf-tiny-student-1  up" in wf("status", "tiny") and "spent, 1 workers" in wf("cost", "tiny")

    head.stop()
    assert "cannot be reached" in wf("status", "tiny") and "--abandon" in wf("down", "tiny", fails=True)
    assert cloud.clusters == ["wf-tiny", "wf-tiny-student-1"]
    head.start()
    assert "cluster 'tiny' is gone" in wf("down", "tiny")
    assert [call[-1] for call in cloud.calls("down")] == ["wf-tiny-student-1", "wf-tiny"] and cloud.clusters == []
    assert ClusterRecord.read("tiny") is None
