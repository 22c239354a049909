"""Which stages of a pipeline remain to be done."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.stages import PlannedStage, pending_stages, plan_stages
from wfray.config.convert import ConvertConfig
from wfray.config.evaluate import EvaluateConfig
from wfray.config.export import ExportConfig
from wfray.config.pipeline import PipelineConfig
from wfray.config.teacher import TeacherConfig
from wfray.runs import write_json

ROOT = Path(__file__).parents[2]


def planned(tmp_path: Path, reference: str) -> list[PlannedStage]:
    """An export that is not done, and an evaluation of what it makes."""
    subject = {"name": "exported", "kind": "gguf", "file": reference}
    export = ExportConfig.load(ROOT / "configs/export/tiny.yaml", [f"run={tmp_path}"])
    tree = EvaluateConfig.load(ROOT / "configs/evaluate/smoke.yaml").model_dump(mode="json")
    harness = {**tree["harness"], "compare": []}
    evaluate = EvaluateConfig.parse({**tree, "run": str(tmp_path), "subjects": [subject], "harness": harness}, "test")
    return [PlannedStage("export", "export", export, []), PlannedStage("evaluate", "evaluate", evaluate, [])]


def test_what_reads_a_file_of_a_stage_is_done_again_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.stages.is_done", lambda config: config.stage != "export")
    assert pending_stages(planned(tmp_path, "export/model.gguf")) == {"export", "evaluate"}
    assert pending_stages(planned(tmp_path, "elsewhere/model.gguf")) == {"export"}
    assert pending_stages(planned(tmp_path, ".")) == {"export"}


def test_a_stage_reads_what_another_made_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "it's, a run"
    plan = {stage.name: stage for stage in plan_stages(PipelineConfig.load(ROOT / "configs/task.yaml"), run, ROOT)}
    tuned = str(run / "tune" / "student")
    assert isinstance(plan["tuned"].config, TeacherConfig) and plan["tuned"].config.model.path == tuned  # type: ignore[union-attr]
    assert isinstance(plan["convert"].config, ConvertConfig) and plan["convert"].config.model.path == tuned  # type: ignore[union-attr]
    monkeypatch.setattr("jobs.stages.is_done", lambda config: config.stage != "tune")
    assert pending_stages(list(plan.values())) == {"tune", "tuned", "convert", "distill", "evaluate", "export"}


def test_what_another_teacher_taught_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.stages.is_done", lambda config: True)
    pipeline = PipelineConfig.load(ROOT / "configs/tiny.yaml")
    plan = plan_stages(pipeline, tmp_path, ROOT)
    teacher = next(stage.config for stage in plan if isinstance(stage.config, TeacherConfig))
    taught = {stage.name for stage in plan if stage.asks}
    for name in taught:
        write_json(tmp_path / name / "teacher.json", {"source_sha256": teacher.source_sha256})
    assert taught and not pending_stages(plan)
    others = {"wires": (["hidden", "topk"], False), "engine_arguments": (["--quick"], True), "dtype": ("bfloat16", True)}
    for field, (value, is_another) in others.items():
        changed = [replace(s, config=teacher.model_copy(update={field: value})) if s.config is teacher else s for s in plan]
        assert (taught <= pending_stages(changed)) == is_another, field
    for name in taught:
        write_json(tmp_path / name / "teacher.json", {"model_sha256": "written before sources were"})
    assert not pending_stages(plan)
