"""The `wf` command without a cluster: what it prints, whom it refuses, what it says when something is missing."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster import lifecycle
from cluster.identity import ClusterRecord, Owner, make_token, me, token_of
from cluster.wf import main
from cluster.workdir import check_size, travelling
from tests.cluster.conftest import ROOT, tiny_config
from wfray.config.cluster import ClusterConfig
from wfray.runs.children import free_port

NEBIUS = "configs/cluster/nebius.yaml"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An identity of the test's own, a `sky` that notes its calls, and an `ssh` that gets nowhere."""
    monkeypatch.setenv("WFRAY_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(ROOT)
    programs = {
        "sky": f'echo "$@" >> {tmp_path}/calls; [ "$1" != status ] || cat {tmp_path}/status 2>/dev/null || echo "[]"',
        "ssh": f'echo "ssh $@" >> {tmp_path}/calls; echo "ssh: connect to host: Connection timed out" >&2; exit 255',
    }
    for name, script in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("WF_SKY", str(tmp_path / "bin" / "sky"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def calls(directory: Path, program: str = "") -> list[str]:
    path = directory / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.startswith(program)]


def wf(*argv: str) -> None:
    main(list(argv))


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message with which a command ends."""
    with pytest.raises(SystemExit) as raised:
        wf(*argv)
    assert raised.value.code == 2
    return capsys.readouterr().err


def make_record(owner: Owner, config: ClusterConfig | None = None) -> ClusterRecord:
    config = config or tiny_config()
    record = ClusterRecord(name=config.name, owner=owner, config=config.to_yaml(), sky_name=f"wf-{config.name}", made_at=time.time() - 3600)
    record.write()
    return record


def test_a_dry_run_prints_the_command_and_the_yaml_and_calls_nothing(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wf("up", NEBIUS, "--dry-run")
    shown = capsys.readouterr().out
    assert f"sky launch -y -d -c wf-nebius --config {state}/state/clusters/nebius.sky.yaml --secret RAY_AUTH_TOKEN" in shown
    documents = re.split(r"^(?:# .*|sky launch .*)$", shown, flags=re.MULTILINE)
    assert yaml.safe_load(documents[1])["resources"]["infra"] == "nebius/eu-north1"
    assert yaml.safe_load(documents[2])["nebius"]["security_group_name"] == "wfray"
    assert yaml.safe_load(documents[4].partition("\n  head")[0])["envs"]["WF_GROUP"] == "student"
    assert "idle $0.20/h" in shown and not calls(state)


def test_up_launches_with_secrets_in_the_environment_alone(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "value-of-the-key")
    monkeypatch.setenv("HF_TOKEN", "value-of-the-token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    wf("up", NEBIUS)
    assert calls(state)[-1].startswith("launch -y -d -c wf-nebius")
    record = ClusterRecord.read("nebius")
    assert record is not None and record.owner == me()
    token = token_of("nebius")
    assert oct((state / "state/clusters/nebius.token").stat().st_mode)[-3:] == "600"
    everything = "".join(path.read_text() for path in state.rglob("*") if path.is_file() and path.suffix != ".token")
    for secret in ("value-of-the-key", "value-of-the-token", token):
        assert secret not in everything + capsys.readouterr().out


def test_a_missing_secret_is_named_before_anything_is_launched(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert "secrets are not set: HF_TOKEN" in fails(capsys, "up", NEBIUS)
    assert not calls(state)


@pytest.mark.parametrize("row", [{"labels": {"wfray-owner": "ben"}, "user_name": "x"}, {"labels": None, "user_name": "ben"}])
def test_a_name_that_somebody_else_s_cluster_has_is_refused(state: Path, row: dict, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "status").write_text("Clusters\n" + json.dumps([{"name": "wf-nebius", **row}]))
    assert "the name 'nebius' is taken by a cluster of ben" in fails(capsys, "up", NEBIUS, "secrets=[]")
    assert not calls(state, "launch")


class TestOwnership:
    """Attempts to end what is not one's own."""

    ben = Owner(name="ben", key="b" * 64)

    def test_down_refuses_with_the_owner_s_name(self, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_record(self.ben)
        assert "cluster 'tiny' belongs to ben, not to you" in fails(capsys, "down", "tiny")
        assert "cluster 'tiny' belongs to ben" in fails(capsys, "down", "tiny", "--abandon")
        assert "cluster 'tiny' belongs to ben" in fails(capsys, "down", "tiny", "--dry-run")
        assert not calls(state)

    def test_taking_the_owner_s_name_opens_nothing(
        self, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_record(self.ben)
        monkeypatch.setenv("USER", "ben")
        monkeypatch.setenv("LOGNAME", "ben")
        assert me().name == "ben"
        assert "belongs to ben" in fails(capsys, "down", "tiny")
        assert not calls(state)

    def test_up_does_not_take_over(self, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_record(self.ben)
        path = tmp_path / "mine.yaml"
        path.write_text(tiny_config().to_yaml())
        assert "belongs to ben" in fails(capsys, "up", str(path))
        assert not calls(state, "launch")

    @pytest.mark.parametrize("name", ["*", "wf-*", "-a", "--all", "../tiny", "tiny tiny"])
    def test_no_name_stands_for_several(self, state: Path, name: str) -> None:
        make_record(me())
        with pytest.raises(SystemExit) as raised:
            wf("down", name)
        assert raised.value.code == 2 and not calls(state)

    @pytest.mark.parametrize("verb", ["down", "cancel"])
    def test_there_is_no_flag_for_all(self, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            wf(verb, "--help")
        assert "all" not in re.findall(r"--?([a-z-]+)", capsys.readouterr().out)


def test_a_head_that_cannot_be_reached_is_not_taken_down_without_its_workers(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_record(me())
    message = fails(capsys, "down", "tiny")
    assert "cannot be reached (ssh: connect to host: Connection timed out)" in message and "--abandon" in message
    assert not calls(state, "down")
    wf("down", "tiny", "--abandon")
    assert calls(state, "down") == ["down -y wf-tiny"] and ClusterRecord.read("tiny") is None
    assert "delete themselves within 25 minutes" in capsys.readouterr().err


def test_a_head_that_came_up_without_ever_running_goes(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setup failed, so there is no directory of the head's yet; the command is run as the head would run it."""
    make_record(me())
    (state / "home").mkdir()
    (state / "bin" / "ssh").write_text(f'#!/bin/sh\nfor last; do :; done\nHOME={state}/home exec sh -c "$last"\n')
    wf("down", "tiny")
    assert calls(state, "down") == ["down -y wf-tiny"] and ClusterRecord.read("tiny") is None


def test_a_head_that_fails_can_be_abandoned(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_record(me())
    (state / "bin" / "ssh").write_text('#!/bin/sh\necho "No space left on device" >&2\nexit 1\n')
    assert "No space left on device" in (message := fails(capsys, "down", "tiny")) and "--abandon" in message
    wf("down", "tiny", "--abandon")
    assert calls(state, "down") == ["down -y wf-tiny"]


def test_a_dashboard_on_a_port_that_is_taken_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make_record(me())
    make_token("tiny")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr("cluster.dashboard.PAGES", {port: "Ray's dashboard"})
        assert f"port {port} is taken on this machine" in fails(capsys, "dashboard", "tiny")


def test_a_dashboard_whose_tunnel_is_lost_ends(state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make_record(me())
    make_token("tiny")
    port = free_port()
    monkeypatch.setattr("cluster.dashboard.PAGES", {port: "Ray's dashboard"})
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(1)"
    script = f'#!/bin/sh\n{sys.executable} -c "{listen}"\necho "Connection reset by peer" >&2\nexit 255\n'
    (state / "bin" / "ssh").write_text(script)
    assert "cannot be reached (Connection reset by peer)" in fails(capsys, "dashboard", "tiny")


def test_status_says_that_a_head_cannot_be_reached(capsys: pytest.CaptureFixture[str]) -> None:
    make_record(me())
    wf("status")
    assert "tiny of" in (shown := capsys.readouterr().out) and "cannot be reached" in shown


def test_a_missing_token_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    make_record(me())
    assert "there is no token for cluster 'tiny'" in fails(capsys, "runs", "--cluster", "tiny")
    make_token("tiny")
    assert "cannot be reached" in fails(capsys, "runs", "--cluster", "tiny")
    assert "there is no token" not in fails(capsys, "cancel", "x", "--cluster", "tiny")


def test_a_dashboard_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no Ray answers at http://127.0.0.1:1" in fails(capsys, "runs", "--address", "http://127.0.0.1:1")


def test_the_commands_that_people_type(capsys: pytest.CaptureFixture[str]) -> None:
    wf("train", "-m", "smollm2_135m", "-s", "2", "--cloud", "nebius", "--dry-run", "train.tokens=1048576000")
    shown = capsys.readouterr().out
    assert "-- python -m jobs.pretrain --config configs/pretrain/smollm2_135m.yaml train.tokens=1048576000" in shown
    assert "ray job submit --submission-id" in shown and "'owner_key'" in shown
    message = fails(capsys, "train", "-m", "smollm2_135m", "-s", "2", "--cloud", "nebius", "--dry-run", "train.tokns=1")
    assert "did you mean 'tokens'?" in message
    assert "models with that stage: quickstart" in fails(capsys, "train", "-m", "gpt", "-s", "1.9", "--cluster", "x")
    assert "there are: none. Name it with --cluster" in fails(capsys, "runs", "--cloud", "nebius")


def test_costs(capsys: pytest.CaptureFixture[str]) -> None:
    wf("cost", NEBIUS, "groups.student.accelerators=['H100:8']")
    assert re.search(r"student +2 x \$ +10\.000/h +table of 2026-05-18", capsys.readouterr().out)
    assert "no price is known for X1000 on nebius (known: H100, H200)" in fails(
        capsys, "cost", NEBIUS, "groups.student.accelerators=['X1000:8']"
    )


def test_skypilot_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WF_SKY", "/nowhere/sky")
    assert "make skypilot" in fails(capsys, "up", NEBIUS, "secrets=[]")


def test_an_enormous_working_directory_names_the_culprits(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "runs").mkdir(parents=True)
    (root / "src").mkdir()
    (root / "src" / "code.py").write_text("x")
    for name, size in {"corpus.bin": 80, "notes.bin": 30, "runs/weights.bin": 500}.items():
        with (root / name).open("wb") as file:
            file.truncate(size * 2**20)
    with pytest.raises(ValueError, match=r"is 110 MB, above 100: corpus.bin \(80 MB\), notes.bin \(30 MB\)"):
        check_size(root)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".gitignore").write_text("*.bin\n")
    assert {str(path) for path in travelling(root)} == {".gitignore", "src/code.py"}


def test_the_project_itself_is_small() -> None:
    assert check_size(ROOT) < 20 * 2**20


def test_what_a_head_says_is_shown() -> None:
    record = make_record(me())
    known = {
        **dict.fromkeys(("hours", "dollars_per_hour", "dollars"), 1.0),
        "name": record.name,
        "owner": "ana",
        "nodes": [{"name": "wf-tiny-student-1", "phase": "launching", "dollars_per_hour": 28.0, "message": "no capacity\nmore"}],
        "pauses": {"teacher": "no capacity anywhere it was tried"},
        "refused": "it is $70/h",
    }
    assert lifecycle.text_of(known).splitlines() == [
        "tiny of ana: 1.0 h, $1.00/h, $1.00 spent, 1 workers",
        "  wf-tiny-student-1  launching  $28.00/h  no capacity",
        "  group teacher pauses: no capacity anywhere it was tried",
        "  not launched: it is $70/h",
    ]
