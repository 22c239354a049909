"""The mirror of runs: whole moments, whatever dies; nothing sent twice; nothing written outside."""

import json
import os
from pathlib import Path

import pytest

from cluster.storage import Mirror, hold_file, print_outcome
from wfray.runs.files import remove


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
    send, sent = mirror.files.put_file, []

    def die_at_second(source: str, place: str) -> None:
        if sent:
            raise OSError("the network is gone")
        sent.append(source)
        send(source, place)

    monkeypatch.setattr(mirror.files, "put_file", die_at_second)
    with pytest.raises(OSError):
        mirror.push()
    assert sent and not (tmp_path / "runs/.mirror").exists()
    Mirror(tmp_path / "new", f"file://{tmp_path}/bucket/runs").pull()
    assert read(tmp_path / "new") == RUN


def test_what_training_replaces_while_it_is_sent_is_sent_whole(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of the moment, though a newer one has taken its place, and a file of metrics that has grown."""
    run = tmp_path / "runs/a/pretrain"
    moment = {"checkpoints/step-1/progress.json": "1", "checkpoints/step-1/tensors/0": "one", "metrics.jsonl": "1\n"}
    write(run, moment)
    send = mirror.files.put_file

    def send_while_training_goes_on(source: str, place: str) -> None:
        remove(run / "checkpoints/step-1")
        write(run, {"checkpoints/step-2/progress.json": "2", "checkpoints/step-2/tensors/0": "two"})
        with (run / "metrics.jsonl").open("a") as metrics:
            metrics.write("2\n")
        send(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(mirror.files, "put_file", send_while_training_goes_on)
        mirror.push()
    Mirror(tmp_path / "first", f"file://{tmp_path}/bucket/runs").pull()
    assert read(tmp_path / "first") == RUN | {f"a/pretrain/{name}": text for name, text in moment.items()}
    mirror.push()
    Mirror(tmp_path / "second", f"file://{tmp_path}/bucket/runs").pull()
    assert read(tmp_path / "second") == read(tmp_path / "runs")


def test_a_file_that_goes_while_the_moment_is_held_begins_it_again(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs", {"a/pretrain/step-1/x": "one", "a/pretrain/step-1/y": "one"})

    def hold_and_replace(path: Path, place: Path) -> None:
        if path.parts[-2:] == ("step-1", "y"):
            remove(path.parent)
            write(tmp_path / "runs", {"a/pretrain/step-2/x": "two"})
        hold_file(path, place)

    monkeypatch.setattr("cluster.storage.hold_file", hold_and_replace)
    mirror.push()
    Mirror(tmp_path / "new", f"file://{tmp_path}/bucket/runs").pull()
    assert read(tmp_path / "new") == RUN | {"a/pretrain/step-2/x": "two"}


def test_a_file_written_in_place_stays_as_it_was_and_is_named(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "runs/a/notes.txt"
    notes.write_text("before")
    mirror.push()
    notes.write_text("after")
    send = mirror.files.put_file

    def send_while_it_is_written(source: str, place: str) -> None:
        with notes.open("a") as file:
            file.write(" all")
        send(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(mirror.files, "put_file", send_while_it_is_written)
        mirror.push()
    assert "a/notes.txt: written in place, not mirrored" in capsys.readouterr().out
    Mirror(tmp_path / "new", f"file://{tmp_path}/bucket/runs").pull()
    assert read(tmp_path / "new") == RUN | {"a/notes.txt": "before"}


def test_a_file_that_is_written_in_place_harms_none_of_the_same_content(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the locks of all stages are empty, and so is at first what a shell writes to."""
    write(tmp_path / "runs", {"a/0.txt": "", "a/lock": ""})
    send = mirror.files.put_file

    def send_while_it_is_written(source: str, place: str) -> None:
        if source.endswith("0.txt"):
            (tmp_path / "runs/a/0.txt").write_text("more")
        send(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(mirror.files, "put_file", send_while_it_is_written)
        mirror.push()
    Mirror(tmp_path / "new", f"file://{tmp_path}/bucket/runs").pull()
    assert read(tmp_path / "new") == RUN | {"a/0.txt": "", "a/lock": ""}


def test_a_stage_that_completes_while_the_moment_is_held_is_whole(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = tmp_path / "runs/b/pretrain"
    write(stage, {"manifest.json": "running", "config.yaml": "x"})
    walk, done = os.walk, []

    def complete_after_the_walk(top: Path):  # type: ignore[no-untyped-def]
        yield from walk(top)
        if not done and (tmp_path / "runs/.mirror/b/pretrain/manifest.json").exists():
            done.append(True)
            write(stage, {"student/weights": "trained", "new.json": "complete"})
            (stage / "new.json").rename(stage / "manifest.json")

    monkeypatch.setattr("cluster.storage.os.walk", complete_after_the_walk)
    mirror.push()
    Mirror(tmp_path / "new", f"file://{tmp_path}/bucket/runs").pull()
    restored = read(tmp_path / "new/b/pretrain")
    assert done and restored == {"manifest.json": "complete", "config.yaml": "x", "student/weights": "trained"}


def test_any_error_of_storage_is_said_and_survived(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ServerDisconnectedError(Exception):
        """What asynchronous storages raise is no OSError."""

    def fail(path: str, **options: object) -> None:
        raise ServerDisconnectedError("gone")

    monkeypatch.setattr(mirror.files, "makedirs", fail)
    print_outcome(mirror)
    assert "could not be mirrored: ServerDisconnectedError: gone" in capsys.readouterr().out


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
