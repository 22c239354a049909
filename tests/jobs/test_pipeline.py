"""The tiny pipeline, every stage for real on a local Ray cluster of its own: done, skipped, killed with -9, resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wfray.runs import read_metrics, stage_manifests

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
STAGES = ["pack", "convert", "align", "pretrain", "distill", "export", "evaluate", "serve"]
NUM_STEPS = 100
PRETRAIN = {"train.tokens": 256 * NUM_STEPS, "train.checkpoint_every_tokens": 2048}
"""A checkpoint every 8 steps: long enough to be killed in the middle."""


def pipeline_file(directory: Path) -> Path:
    """The tiny pipeline in a run directory of its own, with a longer pre-training."""
    tree = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())
    tree["run"] = str(directory / "run")
    for call in tree["stages"]:
        if call["job"] == "pretrain":
            call["set"] = PRETRAIN
    path = directory / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(path: Path) -> subprocess.Popen[str]:
    """The pipeline as a user starts it."""
    command = [sys.executable, "-m", "jobs.pipeline", "--config", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its end; its output."""
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run / "pretrain" / "metrics.jsonl")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run: its pipeline file, and what it printed."""
    path = pipeline_file(tmp_path_factory.mktemp("whole"))
    return path, finish(start(path))


def test_every_stage_is_done_for_real(whole: tuple[Path, str]) -> None:
    run = whole[0].parent / "run"
    manifests = stage_manifests(run)
    assert list(manifests) == STAGES
    assert {manifest.status for manifest in manifests.values()} == {"complete"}
    assert all(manifest.outputs for manifest in manifests.values())
    assert manifests["pretrain"].parents["student"] == manifests["align"].identity
    assert len(losses(run)) == NUM_STEPS and losses(run)[NUM_STEPS] < losses(run)[1]
    assert (run / "export" / "model.gguf").read_bytes()[:4] == b"GGUF"
    samples = json.loads((run / "serve" / "samples.json").read_text())
    assert samples and all(sample["completion_tokens"] > 0 for sample in samples)
    scores = manifests["evaluate"].figures["perplexity"]
    assert scores["distilled"]["all"] < scores["converted"]["all"]
    assert "<svg" in (run / "report.html").read_text()
    assert "minutes, peak resident memory" in whole[1]


def test_a_second_run_skips_everything_and_starts_no_cluster(whole: tuple[Path, str]) -> None:
    output = finish(start(whole[0]))
    assert output.count("skipped") == len(STAGES) + 1
    assert "started" not in output
