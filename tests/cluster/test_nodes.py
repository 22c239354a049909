"""The book of nodes, with a clock of the test: limits, pauses, restarts, and owners."""

import subprocess
from pathlib import Path

import pytest

from cluster.identity import Owner
from cluster.nodes import Nodes
from cluster.sky import down_command
from tests.cluster.conftest import ROOT, tiny_config
from wfray.config.cluster import ClusterConfig

ANA, BEN = Owner(name="ana", key="a" * 64), Owner(name="ben", key="b" * 64)


class Clock:
    """Seconds that pass when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """And a `sky` that notes what it was asked, and fails where a file says so."""
    program = tmp_path / "sky"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nif [ -e {tmp_path}/fail ]; then cat {tmp_path}/fail; exit 1; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("WF_SKY", str(program))
    return Clock()


def open_nodes(directory: Path, clock: Clock, config: ClusterConfig | None = None, owner: Owner = ANA) -> Nodes:
    return Nodes(config or tiny_config(), owner, directory / "head", "10.0.0.1:6379", ROOT, clock)


def finish(nodes: Nodes) -> None:
    """Let every command under way end, and look."""
    for process in list(nodes.running.values()):
        process.wait()
    nodes.tick()


def calls(directory: Path) -> list[str]:
    path = directory / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_a_node_from_its_launch_to_its_end(tmp_path: Path, clock: Clock) -> None:
    nodes = open_nodes(tmp_path, clock)
    (name,) = nodes.launch("student", 1, "request")
    assert name == "wf-tiny-student-1" and nodes.state.nodes[name].phase == "launching"
    finish(nodes)
    assert nodes.state.nodes[name].phase == "up"
    clock.now += 3600
    rate = nodes.prices["student"]
    assert nodes.dollars == pytest.approx(rate + nodes.head_price)
    nodes.release(f"{name}/0")
    finish(nodes)
    assert not nodes.state.nodes and nodes.state.past_dollars == pytest.approx(rate)
    launch, down = calls(tmp_path)
    assert launch.startswith(f"launch -y -d -c {name} --config ") and "--env WF_HEAD=10.0.0.1:6379 --secret RAY_AUTH_TOKEN" in launch
    assert down == f"down -y {name}"


def test_a_restart_goes_on_with_what_was_under_way_and_doubles_nothing(tmp_path: Path, clock: Clock) -> None:
    before = open_nodes(tmp_path, clock)
    up, launching, going = (before.launch("student", 1, "")[0], before.launch("student", 1, "")[0], before.launch("teacher", 1, "")[0])
    finish(before)
    before.state.nodes[launching].phase = "launching"
    before.release(f"{going}/0")
    for process in before.running.values():
        process.wait()
    num_calls = len(calls(tmp_path))

    after = open_nodes(tmp_path, clock)
    after.tick()
    finish(after)
    assert {name: node.phase for name, node in after.state.nodes.items()} == {up: "up", launching: "up"}
    assert [call.split()[:5] for call in sorted(calls(tmp_path)[num_calls:])] == [
        ["down", "-y", going],
        ["launch", "-y", "-d", "-c", launching],
    ]
    assert after.launch("teacher", 1, "") == ["wf-tiny-teacher-4"], "no name is used twice"


def test_failures_are_tried_again_ever_later_then_the_group_pauses(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "fail").write_text("Trying eu-north1\nResourcesUnavailableError: Failed to acquire resources\n")
    nodes = open_nodes(tmp_path, clock)
    (name,) = nodes.launch("student", 1, "")
    attempts = []
    while name in nodes.state.nodes and nodes.state.nodes[name].phase == "launching":
        finish(nodes)
        if nodes.running:
            attempts.append(clock.now)
        clock.now += 0.25
    gaps = [later - earlier for earlier, later in zip(attempts, attempts[1:], strict=False)]
    assert len(attempts) == 3 and gaps[1] == pytest.approx(2 * gaps[0], abs=0.6)
    with pytest.raises(ValueError, match="group student pauses for .* after 1 failures: .*no capacity anywhere.*tried: eu-north1"):
        nodes.launch("student", 1, "")
    (tmp_path / "fail").unlink()
    for _ in range(2):
        clock.now += 1
        finish(nodes)
    assert not nodes.state.nodes, "what was half launched is taken down"
    assert nodes.launch("teacher", 1, ""), "other groups go on"
    clock.now += 60
    assert nodes.launch("student", 1, "")


def test_a_node_that_must_go_is_never_given_up(tmp_path: Path, clock: Clock) -> None:
    nodes = open_nodes(tmp_path, clock)
    (name,) = nodes.launch("student", 1, "")
    finish(nodes)
    (tmp_path / "fail").write_text("the cloud does not answer\n")
    nodes.release(f"{name}/0")
    for _ in range(10):
        finish(nodes)
        clock.now += 1000
    assert name in nodes.state.nodes and len(calls(tmp_path)) > 5
    (tmp_path / "fail").unlink()
    for _ in range(3):
        clock.now += 1000
        finish(nodes)
    assert not nodes.state.nodes


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_nodes": 1}, "would be number 2, above limits.max_nodes 1"),
        ({"max_dollars_per_hour": 0.07}, "/h, above limits.max_dollars_per_hour 0.07"),
    ],
)
def test_limits(tmp_path: Path, clock: Clock, limits: dict, message: str) -> None:
    config = tiny_config(limits={"max_dollars_per_hour": 10, "max_dollars": 100, **limits})
    nodes = open_nodes(tmp_path, clock, config)
    nodes.launch("student", 1, "")
    with pytest.raises(ValueError, match=message):
        nodes.launch("student", 1, "")
    assert message[-10:] in nodes.state.refused, "wf status can tell"


def test_when_the_money_is_spent_all_workers_go(tmp_path: Path, clock: Clock) -> None:
    nodes = open_nodes(tmp_path, clock, tiny_config(limits={"max_dollars_per_hour": 10, "max_dollars": 0.5}))
    nodes.launch("student", 2, "")
    finish(nodes)
    clock.now += 24 * 3600
    nodes.tick()
    finish(nodes)
    assert not nodes.state.nodes and "all workers go" in nodes.state.refused
    with pytest.raises(ValueError, match="nothing more is launched"):
        nodes.launch("student", 1, "")


def test_machines_that_were_launched_together_go_together(tmp_path: Path, clock: Clock) -> None:
    group = {"role": "student", "cpus": 1, "accelerators": ["H100:8"], "max_nodes": 4, "nodes_together": 2}
    config = tiny_config(groups={"student": group}, limits={"max_dollars_per_hour": 200, "max_dollars": 1000})
    nodes = open_nodes(tmp_path, clock, config)
    (name,) = nodes.launch("student", 2, "")
    finish(nodes)
    assert nodes.state.nodes[name].ids == [f"{name}/0", f"{name}/1"]
    nodes.release(f"{name}/1")
    assert nodes.state.nodes[name].phase == "up"
    nodes.release(f"{name}/0")
    assert nodes.state.nodes[name].phase == "stopping"
    finish(nodes)
    assert not nodes.state.nodes


def test_another_owner_s_nodes_are_left_alone(tmp_path: Path, clock: Clock) -> None:
    anas = open_nodes(tmp_path, clock)
    (name,) = anas.launch("student", 1, "")
    finish(anas)
    bens = open_nodes(tmp_path, clock, owner=BEN)
    with pytest.raises(ValueError, match="belongs to ana, not to you .ben.: ask ana to take it down"):
        bens.release(f"{name}/0")
    with pytest.raises(ValueError, match="is no node of cluster 'tiny'"):
        anas.release("wf-other-student-1/0")
    assert not [call for call in calls(tmp_path) if call.startswith("down")]


def test_no_wildcard_reaches_sky(tmp_path: Path, clock: Clock) -> None:
    for name in ("*", "wf-*", "-a", "--all", "sky-serve", "", "wf-a wf-b"):
        with pytest.raises(ValueError, match="not the name of one cluster"):
            down_command(name)
    assert subprocess.list2cmdline(down_command("wf-tiny")) == "sky down -y wf-tiny"
