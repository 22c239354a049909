"""A cloud on this machine: the fake `sky` on the PATH, and clusters whose every process is ended with the test."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import sky, tasks
from cluster.identity import make_token, me
from cluster.nodes import State
from cluster.tasks import head_name
from wfray.config.cluster import ClusterConfig
from wfray.runs.children import free_port

ROOT = Path(__file__).parents[2]


def tiny_config(**changes: Any) -> ClusterConfig:
    """A head of one core, and groups of one core each, without GPUs."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "provider": {"kind": "nebius", "filesystem_id": "fs"},
        "head": {"cpus": 1, "object_store_gb": 0.2},
        "monitoring": False,
        "groups": {
            role: {"role": role, "cpus": 1, "max_nodes": 2, "idle_minutes": 0.1, "object_store_gb": 0.1} for role in ("student", "teacher")
        },
        "limits": {"max_dollars_per_hour": 10, "max_dollars": 100, "backoff_seconds": 1},
    }
    return ClusterConfig.parse({**tree, **changes}, "test")


class FakeCloud:
    """Where the fake `sky` keeps its clusters."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def clusters(self) -> list[str]:
        """Those that are up."""
        return sorted(path.parent.name for path in self.home.glob("*/cluster.json"))

    def calls(self, verb: str) -> list[list[str]]:
        """Every call of one of its commands."""
        path = self.home / "calls.jsonl"
        rows = [json.loads(line)["argv"] for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if row[0] == verb]

    def family(self, cluster: str) -> list[psutil.Process]:
        """Every process of a cluster."""
        record = self.home / cluster / "cluster.json"
        jobs = [pid for pid in json.loads(record.read_text())["jobs"] if psutil.pid_exists(pid)] if record.exists() else []
        found = []
        for pid in jobs:
            with suppress(psutil.NoSuchProcess):
                found += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return found

    def kill(self, cluster: str) -> None:
        """Every process of a cluster at once, as when the power goes."""
        for process in self.family(cluster):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCloud]:
    """The fake `sky`, and ports for a head of its own."""
    home = tmp_path / "sky"
    home.mkdir()
    program = tmp_path / "bin" / "sky"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/cluster/fake_sky.py"} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("FAKE_SKY", str(home))
    monkeypatch.setenv("WF_SKY", str(program))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WFRAY_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("WFRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    # Steps of the autoscaler and looks of the watchers follow each other quickly.
    monkeypatch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    for name in ("GCS", "DASHBOARD", "AGENT", "SERVE", "COSTS"):
        monkeypatch.setenv(f"WF_{name}_PORT", str(free_port()))
    cloud = FakeCloud(home)
    yield cloud
    for path in home.glob("*/cluster.json"):
        cloud.kill(path.parent.name)


def with_token(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> str:
    """The token of a cluster, in the environment as `wf` has it; the name of its head."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", make_token(config.name))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return head_name(config)


def wait_for(what: Callable[[], bool], seconds: float = 120, process: "subprocess.Popen[str] | None" = None) -> None:
    """Until something holds, while `process` runs."""
    ends = time.monotonic() + seconds
    while not what():
        if process is not None and process.poll() is not None:
            pytest.fail(f"it ended too early:\n{process.communicate()[0]}")
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.2)


def start_head(config: ClusterConfig, directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Launch the head of a cluster, as `wf up` does; its name."""
    name = with_token(config, monkeypatch)
    task = tasks.head_task(config, me())
    path = sky.write_task(directory / "head.yaml", task)
    sky.run(sky.launch_command(name, path, None, {}, list(task["secrets"])), cwd=ROOT)
    return name


def state(cloud: FakeCloud, head: str) -> State:
    """What the head remembers of its workers."""
    path = cloud.home / head / ".wfray/head/state.json"
    return State.model_validate_json(path.read_text())


WORK = """
import ray, time
ray.init()
@ray.remote(num_cpus=1, resources={"student": 1})
def where():
    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()
print(ray.get(where.remote()))
"""


def work() -> str:
    """The node where a task for students ran."""
    environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{os.environ['WF_GCS_PORT']}"}
    ends = time.monotonic() + 200
    while (result := subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, timeout=150)).returncode:
        # Its head may be starting.
        assert time.monotonic() < ends, result.stdout + result.stderr
    return result.stdout.strip().splitlines()[-1]
