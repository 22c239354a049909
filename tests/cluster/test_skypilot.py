"""SkyPilot itself judges every file that we generate, and chooses the machine that we mean. Needs `make skypilot`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import sky, tasks
from cluster.identity import Owner
from tests.cluster.conftest import ROOT
from wfray.config.cluster import ClusterConfig

PYTHON = Path.home() / ".cache/wfray/skypilot/bin/python"
pytestmark = [pytest.mark.engine, pytest.mark.skipif(not PYTHON.exists(), reason="SkyPilot is not here: make skypilot")]
OWNER = Owner(name="Ana B.", key="a" * 64)


def write_all(directory: Path) -> list[Path]:
    """Every file of every configuration."""
    files = []
    for path in sorted((ROOT / "configs/cluster").glob("*.yaml")):
        if path.stem == "prices":
            continue
        config = ClusterConfig.load(path)
        files.append(sky.write_task(directory / f"{path.stem}-first.yaml", tasks.first_task(config, OWNER)))
        for group in config.groups:
            task = tasks.worker_task(config, OWNER, group, f"wf-{config.name}-{group}-1")
            files.append(sky.write_task(directory / f"{path.stem}-{group}.yaml", task))
        if own := tasks.sky_config(config):
            files.append(sky.write_yaml(directory / f"{path.stem}-config.yaml", own))
    return files


def judge(directory: Path, files: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run SkyPilot with a home and a catalogue of the test's."""
    home = directory / "home"
    shutil.copytree(ROOT / "tests/cluster/catalogue", home / ".sky/catalogs/v8")
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    command = [str(PYTHON), str(ROOT / "tests/cluster/validate.py"), "--choose", *map(str, files)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def test_skypilot_accepts_every_file_and_chooses_what_is_meant(tmp_path: Path) -> None:
    files = write_all(tmp_path)
    result = judge(tmp_path, files)
    assert result.returncode == 0, result.stdout + result.stderr
    verdicts = dict(line.split(": valid ", 1) for line in result.stdout.splitlines() if ": valid " in line)
    assert set(verdicts) == {path.name for path in files}
    for part in ("Nebius(gpu-h100-sxm_8gpu-128vcpu-1600gb[Spot]", "{'H100': 8}"):
        assert part in verdicts["nebius-student.yaml"]
    assert "Nebius(cpu-d3_8vcpu-32gb" in verdicts["nebius-first.yaml"]
    assert "network_tier=best" in verdicts["nebius_infiniband-student.yaml"]
    assert "RunPod(8x_H100-SXM_SECURE" in verdicts["runpod-first.yaml"]


def test_skypilot_would_have_refused_a_fault(tmp_path: Path) -> None:
    config = ClusterConfig.load(ROOT / "configs/cluster/nebius.yaml")
    task = {**tasks.head_task(config, OWNER), "resource": {}}
    result = judge(tmp_path, [sky.write_task(tmp_path / "wrong.yaml", task)])
    assert result.returncode != 0 and "resource" in result.stderr
