"""Manifests: what is done is skipped, what changed is redone, what is half written is never taken for whole."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wfray.config.base import StageConfig
from wfray.runs import Manifest, MetricsLog, Stage, read_metrics, resolve_home, write_aside
from wfray.runs.files import sha256_of, size_of


class Toy(StageConfig):
    stage: str = "child"
    value: int = 0
    source: str = "parent"

    @property
    def parents(self) -> dict[str, str]:
        return {"source": self.source} if self.stage == "child" else {}


def run(config: Toy, text: str) -> Stage:
    stage = Stage.of(config)
    with stage:
        (stage.directory / "out.txt").write_text(text)
        stage.add_output(stage.directory / "out.txt")
    return stage


def toy(tmp_path: Path, **values: object) -> Toy:
    return Toy(run=str(tmp_path), **values)  # type: ignore[arg-type]


def test_a_complete_stage_is_done_until_configuration_output_or_parent_changes(tmp_path: Path) -> None:
    run(toy(tmp_path, stage="parent"), "a")
    run(toy(tmp_path), "b")
    assert Stage.of(toy(tmp_path)).done
    assert not Stage.of(toy(tmp_path, value=1)).done
    (tmp_path / "child" / "out.txt").write_text("c")
    assert not Stage.of(toy(tmp_path)).done
    run(toy(tmp_path), "b")
    run(toy(tmp_path, stage="parent"), "a")
    assert Stage.of(toy(tmp_path)).done, "a parent redone with an equal result leaves its child done"
    run(toy(tmp_path, stage="parent"), "other")
    assert not Stage.of(toy(tmp_path)).done


class ToyOfLater(Toy):
    added: int = 3


class ToyWithout(StageConfig):
    stage: str = "child"
    source: str = "parent"


def test_a_newer_version_of_a_configuration_leaves_done_what_was_done(tmp_path: Path) -> None:
    run(toy(tmp_path, stage="parent"), "a")
    later = {"run": str(tmp_path), "stage": "parent"}
    assert Stage.of(ToyOfLater.model_validate(later)).done, "a field that was added counts as its default"
    assert not Stage.of(ToyOfLater.model_validate({**later, "added": 4})).done
    assert not Stage.of(ToyOfLater.model_validate({**later, "value": 1})).done
    assert not Stage.of(ToyWithout.model_validate(later)).done, "a field that is gone may have said anything"
    path = tmp_path / "parent" / "manifest.json"
    path.write_text(path.read_text().replace('"value": 0', '"value": 7'))
    assert not Stage.of(toy(tmp_path, stage="parent")).done, "another default says another thing"


def test_moving_a_run_directory_keeps_it_done(tmp_path: Path) -> None:
    run(toy(tmp_path / "a", stage="parent"), "x")
    (tmp_path / "a").rename(tmp_path / "b")
    assert Stage.of(toy(tmp_path / "b", stage="parent")).done


def test_a_failed_stage_says_why_and_is_no_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError), Stage.of(toy(tmp_path, stage="parent")):
        raise RuntimeError("broken")
    manifest = Manifest.read(tmp_path / "parent")
    assert manifest is not None and manifest.status == "failed" and manifest.error == "RuntimeError: broken"
    assert Stage.of(toy(tmp_path, stage="parent")).resumable
    with pytest.raises(ValueError, match="stage 'parent' in .* is failed, not complete"):
        Stage.of(toy(tmp_path))
    monkeypatch.setenv("WFRAY_HOME", str(tmp_path.parent))
    with pytest.raises(ValueError, match="stage 'parent' in .* is failed, not complete"):
        Stage.of(Toy(run=str(tmp_path / "other"), source=f"{tmp_path.name}/parent"))


AT_WORK = """
import sys, time
from wfray.config.base import StageConfig
from wfray.runs import Stage
with Stage.of(StageConfig(run=sys.argv[1], stage="parent")):
    print("at work", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_is_at_work_in_a_stage_and_a_killed_one_leaves_it_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = subprocess.Popen([sys.executable, "-c", AT_WORK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "at work\n"
    begun = (tmp_path / "parent" / "manifest.json").read_bytes()
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="parent' is being written by another process: wait for it or end it"),
    ):
        patch.setattr("wfray.runs.lock.WAIT_SECONDS", 0.0)
        run(toy(tmp_path, stage="parent"), "a")
    assert (tmp_path / "parent" / "manifest.json").read_bytes() == begun
    threading.Timer(1.0, other.kill).start()
    run(toy(tmp_path, stage="parent"), "a")
    other.wait()
    assert Stage.of(toy(tmp_path, stage="parent")).done
    run(toy(tmp_path, stage="parent", value=1), "b")


def test_what_another_process_completed_meanwhile_is_not_done_over(tmp_path: Path) -> None:
    waiting = Stage.of(toy(tmp_path, stage="parent"))
    run(toy(tmp_path, stage="parent"), "a")
    with pytest.raises(ValueError, match="stage 'parent' was completed by another process meanwhile"), waiting:
        waiting.clear()
    assert Stage.of(toy(tmp_path, stage="parent")).done
    run(toy(tmp_path, stage="parent"), "a")


def test_what_another_configuration_left_is_told_from_what_can_be_resumed(tmp_path: Path) -> None:
    for value, resumed in ((0, False), (0, True), (1, False)):
        with pytest.raises(RuntimeError), Stage.of(toy(tmp_path, stage="parent", value=value)) as stage:
            assert stage.resumed is resumed
            if not resumed:
                stage.clear()
            assert (stage.directory / "checkpoint").exists() is resumed
            (stage.directory / "checkpoint").touch()
            raise RuntimeError


def test_what_python_compiles_beside_modules_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "utils.py").write_text("a = 1\n")
    before = sha256_of(tmp_path / "tasks"), size_of(tmp_path / "tasks")
    (tmp_path / "tasks" / "__pycache__").mkdir()
    (tmp_path / "tasks" / "__pycache__" / "utils.pyc").write_bytes(b"compiled")
    assert (sha256_of(tmp_path / "tasks"), size_of(tmp_path / "tasks")) == before
    (tmp_path / "tasks" / "utils.py").write_text("a = 2\n")
    assert sha256_of(tmp_path / "tasks") != before[0]


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source: 'parent' is neither a stage in"):
        Stage.of(toy(tmp_path))


def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), write_aside(target) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_metrics_are_cut_back_to_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.write(step=step, loss=1.0 / step)
    path.write_text(path.read_text() + '{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]
    with MetricsLog(path, resume_step=3) as log:
        log.write(step=4, loss=0.5)
    assert [(row["step"], row["loss"]) for row in read_metrics(path)][-2:] == [(3, 1 / 3), (4, 0.5)]


def test_relative_paths_in_a_ray_working_directory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("WFRAY_HOME", raising=False)
    with pytest.raises(ValueError, match=r"pass an absolute path, for example run=\$PWD/runs/x"):
        resolve_home("runs/x")
    monkeypatch.setenv("WFRAY_HOME", str(tmp_path))
    assert resolve_home("runs/x") == tmp_path / "runs/x"


def stopped(tmp_path: Path, **values: object) -> Path:
    """An attempt at the stage `child` that was killed and left a checkpoint; the checkpoint."""
    run(toy(tmp_path, stage="parent"), "a")
    with pytest.raises(OSError), Stage.of(toy(tmp_path, **values)) as stage:
        kept = stage.directory / "checkpoints" / "step-1"
        kept.mkdir(parents=True)
        (kept / "weights").write_text("much work")
        raise OSError("killed")
    return kept


def test_the_work_of_another_configuration_is_not_deleted_unasked(tmp_path: Path) -> None:
    kept = stopped(tmp_path, value=1)
    Stage.of(toy(tmp_path, value=1)).protect("checkpoints")
    with pytest.raises(
        ValueError, match=r"checkpoints' is of an attempt that differs \(value 1 -> 2\): go on with that one as it was, .*stage="
    ):
        Stage.of(toy(tmp_path, value=2)).protect("checkpoints")
    run(toy(tmp_path, stage="parent"), "other")
    with pytest.raises(ValueError, match=r"differs \(another source\)"):
        Stage.of(toy(tmp_path, value=1)).protect("checkpoints")
    assert (kept / "weights").read_text() == "much work"


def test_what_a_complete_stage_left_may_go(tmp_path: Path) -> None:
    run(toy(tmp_path, stage="parent"), "a")
    with Stage.of(toy(tmp_path)) as stage:
        (stage.directory / "checkpoints" / "step-1").mkdir(parents=True)
    Stage.of(toy(tmp_path, value=3)).protect("checkpoints")


@pytest.mark.parametrize("in_full", [False, True])
def test_what_lies_in_a_stage_is_an_input_where_the_stage_is_complete_and_made_it(tmp_path: Path, in_full: bool) -> None:
    def source(within: str) -> str:
        return str(tmp_path / within) if in_full else within

    run(toy(tmp_path, stage="parent"), "a")
    assert Stage.of(toy(tmp_path, source=source("parent/out.txt"))).inputs["source"] == tmp_path / "parent" / "out.txt"
    (tmp_path / "parent" / "older.txt").write_text("of another attempt")
    (tmp_path / "parent" / "checkpoints").mkdir()
    for name in ("older.txt", "checkpoints"):
        with pytest.raises(ValueError, match=rf"{name}' is none of the outputs of stage 'parent', which are out.txt"):
            Stage.of(toy(tmp_path, source=source(f"parent/{name}")))
    with pytest.raises(RuntimeError), Stage.of(toy(tmp_path, stage="parent", value=5)):
        raise RuntimeError("broken")
    with pytest.raises(ValueError, match=r"stage 'parent' in .* is failed, not complete"):
        Stage.of(toy(tmp_path, source=source("parent/out.txt")))
