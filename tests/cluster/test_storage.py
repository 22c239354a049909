"""The mirror of runs: whole moments, whatever dies; nothing sent twice; nothing written outside."""

import json
from pathlib import Path

import pytest

from cluster.storage import Mirror


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def read(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


RUN = {"a/pretrain/manifest.json": "{}", "a/pretrain/student/model.safetensors": "weights", "models/x/model.safetensors": "weights"}


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    write(tmp_path / "runs", RUN)
    return Mirror(tmp_path / "runs", f"file://{tmp_path}/bucket/runs")


def test_a_new_machine_begins_where_the_last_one_left_off(mirror: Mirror, tmp_path: Path) -> None:
    write(tmp_path / "runs", {"a/pretrain/.student.partial-7/model": "half", "a/pretrain/ray/x": "bookkeeping"})
    assert mirror.push() == 2, "equal contents are sent once"
    assert mirror.push() == 0
    other = Mirror(tmp_path / "new", f"file://{tmp_path}/bucket/runs")
    assert other.pull() == 3 and read(tmp_path / "new") == RUN
    assert other.pull() == 0


def test_a_push_that_dies_leaves_the_moment_before(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.push()
    write(tmp_path / "runs", {"a/pretrain/manifest.json": "complete", "a/pretrain/new": "output"})
    send, sent = mirror.send, []

    def die_at_second(name: str, digest: str) -> str | None:
        if sent:
            raise OSError("the network is gone")
        sent.append(name)
        return send(name, digest)

    monkeypatch.setattr(mirror, "send", die_at_second)
    with pytest.raises(OSError):
        mirror.push()
    Mirror(tmp_path / "new", f"file://{tmp_path}/bucket/runs").pull()
    assert read(tmp_path / "new") == RUN


def test_what_is_deleted_here_is_forgotten_there(mirror: Mirror, tmp_path: Path) -> None:
    mirror.push()
    (tmp_path / "runs/a/pretrain/manifest.json").unlink()
    mirror.push()
    assert len(list((tmp_path / "bucket/runs/objects").iterdir())) == 1


def test_damage_and_paths_that_lead_outside_are_refused(mirror: Mirror, tmp_path: Path) -> None:
    mirror.push()
    bucket = tmp_path / "bucket/runs"
    index = json.loads((bucket / "index.json").read_text())
    digest = index["a/pretrain/student/model.safetensors"]
    (bucket / "objects" / digest).write_text("other weights")
    with pytest.raises(ValueError, match="is damaged"):
        Mirror(tmp_path / "new", f"file://{bucket}").pull()
    (bucket / "index.json").write_text(json.dumps({"../../escaped": digest}))
    with pytest.raises(ValueError, match="outside the directory"):
        Mirror(tmp_path / "new", f"file://{bucket}").pull()
    assert not (tmp_path / "escaped").exists()
