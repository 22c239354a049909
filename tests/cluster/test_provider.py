"""Ray's autoscaler over the fake `sky`: grows by demand, survives its head, replaces what is lost, shrinks."""

from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import FakeCloud, start_head, state, tiny_config, wait_for, work

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


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
