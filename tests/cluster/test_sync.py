"""`wf sync` to a real sshd on loopback: what goes, what stays, when nothing is sent, whose directory it is."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.sync import Sync, main
from cluster.sync_config import read_sync_config
from tests.cluster.conftest import ROOT
from tests.cluster.sshd import Sshd, is_available

pytestmark = [
    pytest.mark.skipif(not is_available(), reason="openssh-server and rsync are not installed"),
    pytest.mark.xdist_group("sshd"),
]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def project(tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with code, results and secrets, and presets for the host."""
    sshd.program(tmp_path / "bin", "box")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WFRAY_STATE", str(tmp_path / "state"))
    root = tmp_path / "project"
    files = {
        "train.py": "print(1)",
        "pkg/deep/module.py": "x = 1",
        "data/notes.txt": "kept by the project's own exclude",
        "ignored.log": "ignored by git",
        ".env": "KEY=1",
        "deploy.key": "secret",
        "aws_credentials.pem": "secret",
        "my_secret.txt": "secret",
        ".venv/bin/python": "x",
        "runs/a/checkpoints/step-00000001/x.distcp": "weights",
        "model.safetensors": "weights",
        ".gitignore": "*.log\n",
        ".sync.conf": f"[project]\nexclude = data/*\n[host box]\naddress = box\npath = {tmp_path}/there/copy\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.chdir(root)
    return root


def there(project: Path) -> set[str]:
    copy = project.parent / "there" / "copy"
    return {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}


def sync(project: Path) -> Sync:
    return Sync(read_sync_config(project), None)


def test_code_goes_and_secrets_results_and_environments_stay(project: Path) -> None:
    assert sync(project).once(smart=False, dry_run=False) == "3 files sent or deleted"
    assert there(project) == {".wfray-sync", "train.py", "pkg/deep/module.py", ".gitignore"}


def test_what_is_deleted_here_is_deleted_there_and_what_was_made_there_under_an_exclude_stays(project: Path) -> None:
    sync(project).once(smart=False, dry_run=False)
    (project / "train.py").unlink()
    made = project.parent / "there/copy/runs/result.json"
    made.parent.mkdir()
    made.write_text("{}")
    assert sync(project).once(smart=False, dry_run=False) == "1 files sent or deleted"
    assert there(project) == {".wfray-sync", "pkg/deep/module.py", ".gitignore", "runs/result.json"}


def test_smart_sends_nothing_when_the_checksum_is_unchanged_or_a_watcher_runs(project: Path) -> None:
    assert "3 files" in sync(project).once(smart=True, dry_run=False)
    os.utime(project / "train.py")
    assert sync(project).once(smart=True, dry_run=False) == "unchanged: nothing sent"
    (project / "data/notes.txt").write_text("an excluded file changes nothing")
    assert sync(project).once(smart=True, dry_run=False) == "unchanged: nothing sent"
    (project / "train.py").write_text("print(2)")
    with sync(project).watching():
        assert sync(project).once(smart=True, dry_run=False) == "a watcher is active: nothing sent"
        with pytest.raises(ValueError, match="active already"):
            sync(project).watch()
    assert sync(project).once(smart=True, dry_run=False) == "1 files sent or deleted"


def test_status_as_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["status", "--json"])
    before = json.loads(capsys.readouterr().out)
    assert before["last_sync"] is None and before["changed"] and not before["watcher"]
    sync(project).once(smart=False, dry_run=False)
    main(["status", "box", "--json"])
    after = json.loads(capsys.readouterr().out)
    assert after["last_sync"] and not after["changed"] and after["host"] == "box"


def test_a_dry_run_sends_nothing_and_says_what_it_would(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sync(project).once(smart=False, dry_run=False)
    (project / "train.py").write_text("print(3)")
    main(["--dry-run"])
    shown = capsys.readouterr().out
    assert "rsync -rlptz --delete" in shown.splitlines()[0] and "--dry-run" not in shown and shown.splitlines()[1].endswith(" train.py")
    assert (project.parent / "there/copy/train.py").read_text() == "print(1)"


def test_a_watcher_sends_what_changes_until_it_is_killed(project: Path) -> None:
    command = [sys.executable, "-m", "cluster.wf", "sync", "--watch"]
    watcher = subprocess.Popen(command, cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    try:
        copy = project.parent / "there/copy/train.py"
        wait_for(lambda: copy.exists())
        assert sync(project).is_watched
        (project / "train.py").write_text("print('changed')")
        wait_for(lambda: copy.read_text() == "print('changed')")
    finally:
        watcher.kill()
        watcher.wait()
    assert not sync(project).is_watched


def wait_for(what, seconds: float = 60) -> None:  # type: ignore[no-untyped-def]
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_a_directory_that_it_did_not_make_is_left_alone(project: Path) -> None:
    foreign = project.parent / "there/copy/thesis.tex"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("years of work")
    with pytest.raises(ValueError, match="would delete: choose a new directory"):
        sync(project).once(smart=False, dry_run=False)
    assert foreign.exists()


def test_another_owner_s_directory_is_left_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync(project).once(smart=False, dry_run=False)
    monkeypatch.setenv("WFRAY_STATE", str(project.parent / "another"))
    with pytest.raises(ValueError, match="belongs to .*, not to you"):
        sync(project).once(smart=False, dry_run=False)


def test_a_host_that_does_not_answer_is_named(project: Path) -> None:
    conf = project / ".sync.conf"
    conf.write_text(conf.read_text().replace("address = box", "address = 127.0.0.1\nport = 1"))
    with pytest.raises(ValueError, match="ssh to 127.0.0.1 failed: .*refused"):
        sync(project).once(smart=False, dry_run=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"names no host"),
        ("[host]\naddress = box\n", "needs path"),
        ("[host]\naddress = box\npath = /\n", "too near the root"),
        ("[host]\naddress = box\npath = ~\n", "too near the root"),
        ("[host]\naddress = box\npath = /home\n", "too near the root"),
        ("[host]\naddress = box\npath = a/../..\n", "too near the root"),
        ("[host]\naddress = -oProxyCommand=x\npath = a\n", "is no host"),
        ("[host]\naddress = box\npath = a\npasword = x\n", "has no pasword; there are address"),
        ("[hosts]\naddress = box\n", "unknown section"),
        ("[host a]\naddress = x\npath = a\n[host b]\naddress = y\npath = b\n", r"say which host \(a, b"),
    ],
)
def test_mistakes_in_the_presets_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / ".sync.conf").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sync_config(tmp_path).host(None)


def test_a_missing_file_shows_how_it_looks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[host gpu-box\]"):
        read_sync_config(tmp_path)
