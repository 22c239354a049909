"""Ray's autoscaler over the fake `sky`: grows by demand, survives its head, replaces what is lost, shrinks."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import FakeCloud, start_head, state, tiny_config, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

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


def ray_processes(cloud: FakeCloud, cluster: str) -> list[psutil.Process]:
    """Ray's own processes of a cluster, without the program that keeps it running."""
    return [
        process
        for process in cloud.family(cluster)
        if "cluster.head" not in process.cmdline() and "cluster.worker" not in process.cmdline()
    ]


def test_it_grows_survives_its_head_and_a_lost_node_and_shrinks(cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"student": {"role": "student", "cpus": 1, "max_nodes": 1, "idle_minutes": 0.5, "object_store_gb": 0.1}}
    head = start_head(tiny_config(groups=groups), tmp_path, monkeypatch)
    wait_for(lambda: (cloud.home / head / ".wfray/head/state.json").exists())
    assert cloud.clusters == [head]
    first = work()
    assert cloud.clusters == [head, "wf-tiny-student-1"]

    for process in ray_processes(cloud, head):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    second = work()
    assert cloud.clusters == [head, "wf-tiny-student-1"], "the head starts again and neither loses nor doubles its node"
    assert second != first and len(cloud.calls("launch")) == 2

    cloud.kill("wf-tiny-student-1")
    work()
    assert cloud.clusters == [head, "wf-tiny-student-2"], "what is lost is taken down and replaced"

    wait_for(lambda: cloud.clusters == [head] and not state(cloud, head).nodes)
    assert state(cloud, head).past_dollars > 0
    assert [call[-1] for call in cloud.calls("down")] == ["wf-tiny-student-1", "wf-tiny-student-2"]
