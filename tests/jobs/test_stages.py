"""Which stages of a pipeline remain to be done."""

from pathlib import Path

import pytest

from jobs.stages import PlannedStage, pending_stages
from wfray.config.evaluate import EvaluateConfig
from wfray.config.export import ExportConfig

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
